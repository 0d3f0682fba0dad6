/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a client's thread does: a write from the client to its end, and a read.
 *
 * The steps of a write are those of engine/requests.py for a healthy pair: its place in the order and in the
 * epoch, its packet, the local disk, the peer's answer. The packet is sent while the outlet's lock is held,
 * taken before the mutex: so packets leave in the order in which their writes entered the table.
 */
#include "hot.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() __asm__ volatile("" ::: "memory")
#endif

void wake(Waiter *waiter)
{
    /* Once the word is set, the waiter may be gone: its address is all that is used of it. */
    uint32_t *word = &waiter->word;
    __atomic_store_n(word, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* The only write under way looks for its end itself for so long, if the peer's answers come that soon: its
 * thread need not be woken, which at one request at a time is a tenth of its latency. */
void spin(const Waiter *waiter)
{
    double until = clock_seconds() + SPIN_SECONDS;
    while (!__atomic_load_n(&waiter->word, __ATOMIC_ACQUIRE) && clock_seconds() < until)
        for (int i = 0; i < 16; i++)
            RELAX();
}

void wait_for(Waiter *waiter)
{
    while (!__atomic_load_n(&waiter->word, __ATOMIC_ACQUIRE))
        syscall(SYS_futex, &waiter->word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

void backing_leave(Backing *backing)
{
    if (backing && !--backing->users) {
        close(backing->fd);
        flusher_leave(backing->flusher);
        free(backing);
    }
}

/* The page cache keeps what one write brings in one piece of memory, and ext4 looks at all blocks of that at every
 * later write into it: in a file that was filled by writes of 1 MiB, a write of 4 KiB takes 6 to 9 microseconds
 * instead of 2.5. So files are written in parts of this size. Smaller ones gain writes nothing, and cost reads and
 * large writes a third (see docs/performance.md). */
#define PART (128u << 10)

/* 0 or an errno. */
int write_all(int fd, const unsigned char *from, size_t size, uint64_t offset)
{
    while (size) {
        size_t part = PART - offset % PART;
        ssize_t done = pwrite(fd, from, size < part ? size : part, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done ? errno : EIO;
        from += done;
        offset += (uint64_t)done;
        size -= (size_t)done;
    }
    return 0;
}

/* The frame of a DATA packet up to its data. */
static void data_head(unsigned char *head, const Table *t, const Slot *s, uint32_t sequence)
{
    put32(head, H100_MAGIC);
    head[4] = (unsigned char)(t->volume >> 8);
    head[5] = (unsigned char)t->volume;
    head[6] = 0;
    head[7] = P_DATA;
    put32(head + 8, DATA_HEAD + s->length);
    put32(head + 12, 0);
    put64(head + 16, s->offset / SECTOR);
    put64(head + 24, s->ident);
    put32(head + 32, sequence);
    put32(head + 36, t->flags);
}

typedef struct {
    double begun, entered, sent, written;
} Times;

static void record_own(Table *t, const Times *times)
{
    table_record(t, STAGE_QUEUE, times->entered - times->begun);
    table_record(t, STAGE_SEND, times->sent - times->entered);
    table_record(t, STAGE_DISK, times->written - times->sent);
}

/* The write is over, and its thread goes on. Queue, send, the longer one of disk and peer, and wake make the total. */
static void record_end(Table *t, const Times *times, double acked)
{
    double now = clock_seconds();
    table_record(t, STAGE_PEER, acked - times->sent);
    table_record(t, STAGE_WAKE, now - (acked > times->written ? acked : times->written));
    table_record(t, STAGE_TOTAL, now - times->begun);
}

/* Results of a whole write, besides the number of a slot. */
enum { NOT_MINE = -1, DONE = -2 };

Port *data_port(Lane *self)
{
    pthread_mutex_lock(&self->mutex->lock);
    Port *port = self->table.mode == MODE_CLIENT ? self->ports[0] : NULL;
    if (port)
        port->users++;
    pthread_mutex_unlock(&self->mutex->lock);
    return port;
}

/* Enter the write in the table and send its packet. NOT_MINE, or its slot. */
static int submit(Lane *self, Port *port, const void *data, uint32_t length, uint64_t offset, Waiter *waiter,
                  Times *times, Backing **backing)
{
    Table *t = &self->table;
    unsigned char head[HEADER + DATA_HEAD];
    pthread_mutex_lock(&port->lock);
    pthread_mutex_lock(&self->mutex->lock);
    times->entered = clock_seconds();
    int slot = NOT_MINE;
    if (port == self->ports[0] && !port->backlog && !port->failed && t->backing)
        slot = table_begin(t, offset, length, times->entered);
    if (slot >= 0) {
        t->slots[slot].waiter = waiter;
        *backing = t->backing;
        (*backing)->users++;
        data_head(head, t, &t->slots[slot], ++t->sequence);
    }
    pthread_mutex_unlock(&self->mutex->lock);
    int left = slot >= 0 && port_send(port, head, sizeof head, data, length);
    pthread_mutex_unlock(&port->lock);
    if (left)
        eventfd_write(self->wake_fd, 1);
    return slot;
}

/* A whole write, without the interpreter's lock. NOT_MINE: nothing has happened; DONE; else its slot, and the
 * errno of the disk: Python goes on with it. */
static int write_through(Lane *self, const void *data, uint32_t length, uint64_t offset, int *disk_error)
{
    Table *t = &self->table;
    Waiter waiter = {0};
    Backing *backing = NULL;
    Times times = {.begun = clock_seconds()};
    Port *port = data_port(self);
    if (!port)
        return NOT_MINE;
    int slot = submit(self, port, data, length, offset, &waiter, &times, &backing);
    port_leave(port);
    if (slot < 0)
        return NOT_MINE;
    times.sent = clock_seconds();
    *disk_error = write_all(backing->fd, data, length, offset);
    times.written = clock_seconds();

    pthread_mutex_lock(&self->mutex->lock);
    backing_leave(backing);
    int taken = t->slots[slot].state == SLOT_TAKEN;
    int soon = t->in_flight == 1 && t->ack_seconds < SPIN_SECONDS;
    int done = !taken && table_local_done(t, slot, !*disk_error);
    if (*disk_error && !taken)
        t->slots[slot].waiter = NULL; /* it ends with this call, and the write goes on */
    pthread_mutex_unlock(&self->mutex->lock);
    record_own(t, &times);
    if (done)
        record_end(t, &times, waiter.acked);
    if (done || taken || *disk_error)
        return done ? DONE : slot;
    if (soon)
        spin(&waiter);
    wait_for(&waiter);
    if (waiter.taken)
        return slot;
    record_end(t, &times, waiter.acked);
    return DONE;
}

/* What a write that came by way of the filter has left for Python, on the same thread. */
static __thread struct {
    int is, slot, disk_error;
} pending;

/* write_all(fd, data, offset): OSError. */
PyObject *native_write_all(PyObject *module, PyObject *args)
{
    int fd, error;
    Py_buffer data;
    unsigned long long offset;
    (void)module;
    if (!PyArg_ParseTuple(args, "iy*K", &fd, &data, &offset))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = write_all(fd, data.buf, (size_t)data.len, offset);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyObject *lane_write(Lane *self, PyObject *args)
{
    Py_buffer data;
    unsigned long long offset;
    int result = NOT_MINE, disk_error = 0;
    if (!PyArg_ParseTuple(args, "y*K", &data, &offset))
        return NULL;
    if (pending.is) {
        pending.is = 0;
        result = pending.slot;
        disk_error = pending.disk_error;
    } else if (self->table.mode == MODE_CLIENT && data.len <= MAX_DATA) {
        Py_BEGIN_ALLOW_THREADS
        result = write_through(self, data.buf, (uint32_t)data.len, offset, &disk_error);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (result == NOT_MINE)
        Py_RETURN_FALSE;
    if (result == DONE)
        Py_RETURN_NONE;
    return Py_BuildValue("ii", result, disk_error);
}

/* 1: all of it was read. */
static int read_through(Lane *self, void *into, uint32_t length, uint64_t offset)
{
    Table *t = &self->table;
    double begun = clock_seconds();
    pthread_mutex_lock(&self->mutex->lock);
    Backing *backing = t->backing;
    if (!t->readable || !backing || (offset | length) % SECTOR || offset > t->size || length > t->size - offset) {
        pthread_mutex_unlock(&self->mutex->lock);
        return 0;
    }
    backing->users++;
    pthread_mutex_unlock(&self->mutex->lock);
    unsigned char *to = into;
    size_t left = length;
    while (left) {
        ssize_t done = pread(backing->fd, to, left, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            break; /* the slow path reads again, and acts on the error */
        to += done;
        offset += (uint64_t)done;
        left -= (size_t)done;
    }
    double ended = clock_seconds();
    pthread_mutex_lock(&self->mutex->lock);
    backing_leave(backing);
    if (!left)
        t->read += length;
    pthread_mutex_unlock(&self->mutex->lock);
    if (!left)
        table_record(t, STAGE_READ, ended - begun);
    return !left;
}

PyObject *lane_read(Lane *self, PyObject *args)
{
    Py_buffer into;
    unsigned long long offset;
    int done = 0;
    if (!PyArg_ParseTuple(args, "w*K", &into, &offset))
        return NULL;
    if (self->table.readable && into.len < UINT32_MAX) {
        Py_BEGIN_ALLOW_THREADS
        done = read_through(self, into.buf, (uint32_t)into.len, offset);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&into);
    return PyBool_FromLong(done);
}

/* --- for nbdkit's filter (filter.c), which comes without the interpreter --------------------------- */
static Lane *_Atomic serving;

/* This lane serves the process's clients from now on, for as long as the process lives. */
PyObject *lane_serve(Lane *self, PyObject *args)
{
    (void)args;
    Py_INCREF(self);
    serving = self;
    Py_RETURN_NONE;
}

/* 1: the write is done; 0: hand it to Python, on this thread. */
int pydrbd_hot_write(const void *data, uint32_t length, uint64_t offset)
{
    Lane *self = serving;
    int disk_error = 0;
    if (!self || self->table.mode != MODE_CLIENT || length > MAX_DATA)
        return 0;
    int result = write_through(self, data, length, offset, &disk_error);
    if (result >= 0) {
        pending.is = 1;
        pending.slot = result;
        pending.disk_error = disk_error;
    }
    return result == DONE;
}

/* 1: all that was written is durable; 0: hand the flush to Python. */
int pydrbd_hot_flush(void)
{
    Lane *self = serving;
    return self && self->table.may_flush && flush_through(self);
}

/* 1: it is read; 0: hand it to Python. */
int pydrbd_hot_read(void *into, uint32_t length, uint64_t offset)
{
    Lane *self = serving;
    return self && self->table.readable && read_through(self, into, length, offset);
}
