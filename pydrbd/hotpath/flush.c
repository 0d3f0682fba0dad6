/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Flushes: of one disk (Flusher), and of a client's writes on both nodes.
 *
 * A client's flush ends the current epoch, flushes this node's disk while the peer does the same with its own,
 * and returns when the epoch is confirmed. Clients that come meanwhile wait for the next round, which one of
 * them leads. Whatever goes wrong, or is not as simple as that, is left to the engine, which does the whole
 * flush once more: a flush may be repeated.
 */
#include "hot.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* --- Flusher ------------------------------------------------------------------------------------ */
int flusher_flush(Flusher *f, int fd)
{
    pthread_mutex_lock(&f->lock);
    unsigned long mine = f->started + 1;
    while (f->finished < mine && f->started > f->finished)
        pthread_cond_wait(&f->over, &f->lock);
    if (f->finished < mine) {
        f->started = mine;
        pthread_mutex_unlock(&f->lock);
        int error = 0;
        while (fdatasync(fd))
            if (errno != EINTR) {
                error = errno;
                break;
            }
        pthread_mutex_lock(&f->lock);
        f->finished = mine;
        if (!f->error)
            f->error = error;
        pthread_cond_broadcast(&f->over);
    }
    int error = f->error;
    pthread_mutex_unlock(&f->lock);
    return error;
}

void flusher_leave(Flusher *f)
{
    if (f && --f->users == 0)
        free(f);
}

static PyObject *flusher_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    FlusherObject *self = (FlusherObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (!(self->flusher = calloc(1, sizeof(Flusher)))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->flusher->users = 1;
    pthread_mutex_init(&self->flusher->lock, NULL);
    pthread_cond_init(&self->flusher->over, NULL);
    return (PyObject *)self;
}

static void flusher_dealloc(FlusherObject *self)
{
    flusher_leave(self->flusher);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *flusher_call(FlusherObject *self, PyObject *args)
{
    int fd, error;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = flusher_flush(self->flusher, fd);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyMethodDef flusher_methods[] = {
    {"flush", (PyCFunction)flusher_call, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject FlusherType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pydrbd.hotpath._native.Flusher",
    .tp_basicsize = sizeof(FlusherObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Makes a disk durable, for many at once.",
    .tp_new = flusher_new,
    .tp_dealloc = (destructor)flusher_dealloc,
    .tp_methods = flusher_methods,
};

/* --- a client's flush ---------------------------------------------------------------------------- */
/* BARRIER, or BARRIER_ACK with the number of writes; `number` as it is on the wire. */
static void barrier_frame(unsigned char *frame, unsigned char command, const unsigned char *number, uint32_t count)
{
    put32(frame, H100_MAGIC);
    put32(frame + 4, command);
    put32(frame + 8, BARRIER_BYTES - HEADER);
    put32(frame + 12, 0);
    memcpy(frame + HEADER, number, 4);
    put32(frame + HEADER + 4, count);
}

/* What a round has to wait for. */
typedef struct {
    Backing *backing;
    uint64_t opening, serial;
    double sent;
} Round;

/* End the epoch and tell the peer. 0: it is not for the lane. */
static int begin_round(Lane *self, Round *round)
{
    Table *t = &self->table;
    Port *port = data_port(self);
    uint32_t number;
    int ok, sends = 0, left = 0;
    if (!port)
        return 0;
    pthread_mutex_lock(&port->lock);
    pthread_mutex_lock(&self->mutex->lock);
    ok = port == self->ports[0] && !port->backlog && !port->failed && t->backing && t->may_flush;
    if (ok) {
        sends = table_cut_own(t, &number);
        *round = (Round){t->backing, t->opening, t->serial, 0};
        round->backing->users++;
    }
    pthread_mutex_unlock(&self->mutex->lock);
    if (sends) {
        unsigned char frame[BARRIER_BYTES], wire[4];
        put32(wire, number);
        barrier_frame(frame, P_BARRIER, wire, 0);
        left = port_send(port, frame, sizeof frame, NULL, 0);
    }
    pthread_mutex_unlock(&port->lock);
    if (left)
        eventfd_write(self->wake_fd, 1);
    port_leave(port);
    round->sent = clock_seconds();
    return ok;
}

/* 1: every write that was complete before is durable on both nodes. */
static int do_round(Lane *self)
{
    Table *t = &self->table;
    Round round;
    Waiter waiter = {0};
    if (!begin_round(self, &round))
        return 0;
    int error = flusher_flush(round.backing->flusher, round.backing->fd);
    double flushed = clock_seconds();
    table_record(t, STAGE_FLUSH_DISK, flushed - round.sent);
    pthread_mutex_lock(&self->mutex->lock);
    backing_leave(round.backing);
    int good = !error && t->opening == round.opening;
    int waits = good && t->confirmed < round.serial;
    int soon = waits && !t->in_flight && t->flush_wait < SPIN_SECONDS;
    if (waits) {
        t->flush_waiter = &waiter;
        t->flush_serial = round.serial;
    }
    pthread_mutex_unlock(&self->mutex->lock);
    if (soon)
        spin(&waiter);
    if (waits) {
        wait_for(&waiter);
        good = !waiter.taken;
    }
    if (good) {
        double acked = waits ? waiter.acked : flushed;
        t->flush_wait += (acked - flushed - t->flush_wait) / 8;
        table_record(t, STAGE_FLUSH_PEER, acked - round.sent);
    }
    return good;
}

int flush_through(Lane *self)
{
    Table *t = &self->table;
    double begun = clock_seconds();
    pthread_mutex_lock(&self->mutex->lock);
    unsigned long mine = t->rounds + 1;
    while (t->may_flush && t->rounds_over < mine && t->rounds > t->rounds_over)
        pthread_cond_wait(&t->round_over, &self->mutex->lock);
    int over = t->rounds_over >= mine, leads = !over && t->may_flush && t->rounds == t->rounds_over;
    int good = over && t->rounds_good >= mine;
    if (leads)
        t->rounds = mine;
    pthread_mutex_unlock(&self->mutex->lock);
    if (leads) {
        good = do_round(self);
        pthread_mutex_lock(&self->mutex->lock);
        t->rounds_over = mine;
        if (good)
            t->rounds_good = mine;
        pthread_cond_broadcast(&t->round_over);
        pthread_mutex_unlock(&self->mutex->lock);
    }
    if (good)
        table_record(t, STAGE_FLUSH, clock_seconds() - begun);
    return good;
}

PyObject *lane_flush(Lane *self, PyObject *args)
{
    int done = 0;
    (void)args;
    if (self->table.may_flush) {
        Py_BEGIN_ALLOW_THREADS
        done = flush_through(self);
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(done);
}

/* --- for the peer -------------------------------------------------------------------------------- */
/* The data thread flushes by itself, and receives nothing meanwhile, if the disk is as quick as this. */
#define QUICK_FLUSH 1e-3
/* Of flushes that others do, one in this many is tried here again. */
#define FORGET (1.0 / 64)

static Backing *may_flush_for_peer(Lane *self, uint64_t *opening)
{
    Table *t = &self->table;
    Backing *backing = NULL;
    pthread_mutex_lock(&self->mutex->lock);
    if (t->flush_seconds > QUICK_FLUSH)
        t->flush_seconds -= t->flush_seconds * FORGET;
    else if (t->mode == MODE_PEER && t->peer_may_flush && t->peer_count && !t->peer_busy)
        backing = t->backing;
    if (backing)
        backing->users++;
    *opening = t->opening;
    pthread_mutex_unlock(&self->mutex->lock);
    return backing;
}

int flush_for_peer(Lane *self, Port *meta, const unsigned char *barrier)
{
    Table *t = &self->table;
    uint64_t opening;
    Backing *backing = may_flush_for_peer(self, &opening);
    if (!backing)
        return 0;
    double begun = clock_seconds();
    int error = flusher_flush(backing->flusher, backing->fd);
    double seconds = clock_seconds() - begun;
    uint32_t count = 0;
    int left = 0;
    pthread_mutex_lock(&meta->lock);
    pthread_mutex_lock(&self->mutex->lock);
    backing_leave(backing);
    t->flush_seconds += (seconds - t->flush_seconds) / 4;
    /* Nothing of an epoch before may be overtaken: that would be in the backlog. */
    int mine = !error && t->opening == opening && t->peer_may_flush && !meta->backlog && !meta->failed;
    if (mine) {
        count = t->peer_count;
        t->peer_count = 0;
        mine = count != 0;
    }
    pthread_mutex_unlock(&self->mutex->lock);
    if (mine) {
        unsigned char frame[BARRIER_BYTES];
        barrier_frame(frame, P_BARRIER_ACK, barrier + HEADER, count);
        left = port_send(meta, frame, sizeof frame, NULL, 0);
    }
    pthread_mutex_unlock(&meta->lock);
    if (left)
        eventfd_write(self->wake_fd, 1);
    if (mine)
        table_record(t, STAGE_PEER_FLUSH, seconds);
    return mine;
}
