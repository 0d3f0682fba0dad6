/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Receiving: frames from one socket, in their order.
 *
 * A WRITE_ACK of a client's lane (meta socket, on the loop's thread) and a DATA of a peer's lane (data socket, on
 * the session's data thread) are dealt with here; every other frame goes to Python whole, and nothing behind
 * it on its socket is looked at before Python has acted on it. On the source of a resync the data thread answers
 * requests for blocks (answer.c). While there is work for the lane, the thread stays
 * here. A peer's write is carried out by the data thread itself, between two frames; a disk that hangs
 * holds that thread up and nothing else.
 *
 * Invariant: who takes frames from an inbox holds its lock and has seen that the session is still the same.
 */
#include "hot.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { DATA, META };
#define ACK_BYTES (HEADER + 24)
/* Acks that leave together, while more writes are there already: each send costs a peer's waking up. */
#define ACKS 16
#define ACKS_DATA (128u << 10)

typedef struct {
    unsigned char bytes[ACKS * ACK_BYTES];
    size_t size;
    uint64_t data; /* bytes that they acknowledge */
    double written[ACKS]; /* when their writes were on the disk */
} Acks;

/* Who receives: a session's sockets, which stay for as long as somebody uses them. */
typedef struct {
    Lane *lane;
    Port *ports[2];
    unsigned session;
} Receiver;

/* The length of the frame at `p`, header included; 0: more bytes are needed; -1: no frame. */
static long frame_length(const unsigned char *p, size_t have)
{
    if (have < HEADER)
        return 0;
    uint32_t length = get32(p + 8);
    if (get32(p) != H100_MAGIC || length > MAX_DATA + BLOCK)
        return -1;
    return have < HEADER + (size_t)length ? 0 : (long)(HEADER + length);
}

static unsigned command(const unsigned char *p) { return (unsigned)p[6] << 8 | p[7]; }
static unsigned volume(const unsigned char *p) { return (unsigned)p[4] << 8 | p[5]; }

/* --- acks of our writes (client) --------------------------------------------------------------- */
/* Is this a frame that the lane, open as it is, deals with? */
static int is_lanes(const Table *t, int channel, const unsigned char *p)
{
    unsigned kind = command(p);
    if (channel == META)
        return t->mode == MODE_CLIENT && (kind == P_WRITE_ACK || kind == P_RS_WRITE_ACK || kind == P_BARRIER_ACK);
    if (t->mode == MODE_CLIENT)
        return t->may_answer && (kind == P_RS_DATA_REQUEST || kind == P_RS_THIN_REQ);
    return t->mode == MODE_PEER && (kind == P_DATA || kind == P_BARRIER);
}

/* Deal with all acks at the front; the bytes they took. */
static size_t take_acks(Lane *self, const unsigned char *p, size_t have)
{
    Table *t = &self->table;
    Waiter *over[SLOTS];
    int count = 0;
    size_t taken = 0;
    double now = clock_seconds();
    pthread_mutex_lock(&self->mutex->lock);
    while (t->mode == MODE_CLIENT && have - taken >= BARRIER_BYTES && count < SLOTS) {
        const unsigned char *f = p + taken;
        long length = frame_length(f, have - taken);
        if (length == BARRIER_BYTES && command(f) == P_BARRIER_ACK && !volume(f) &&
            table_barrier_acked(t, get32(f + HEADER), get32(f + HEADER + 4))) {
            taken += BARRIER_BYTES;
            continue;
        }
        int in_sync = t->bits.buf && command(f) == P_RS_WRITE_ACK;
        if (length != ACK_BYTES || !(in_sync || command(f) == P_WRITE_ACK) || volume(f) != t->volume)
            break;
        uint64_t sector = get64(f + 16);
        int slot = sector >> 54 ? SLOW : table_find(t, get64(f + 24), sector * SECTOR, get32(f + 32));
        if (slot < 0)
            break;
        Slot *s = &t->slots[slot];
        table_acked(t, slot, in_sync);
        t->ack_seconds += (now - s->sent_at - t->ack_seconds) / 8;
        if (s->waiter)
            s->waiter->acked = now;
        if (table_complete(t, slot)) {
            if (s->waiter)
                over[count++] = s->waiter;
        }
        taken += ACK_BYTES;
    }
    pthread_mutex_unlock(&self->mutex->lock);
    for (int i = 0; i < count; i++)
        wake(over[i]);
    return taken;
}

/* --- the peer's writes ------------------------------------------------------------------------- */
static void send_acks(const Receiver *r, Acks *acks)
{
    Lane *self = r->lane;
    Port *port = r->ports[META];
    if (!acks->size)
        return;
    pthread_mutex_lock(&port->lock);
    /* Acks may overtake whole packets that Python has queued, but not cut into one. */
    if (port->spill || port->half) {
        port_append(port, acks->bytes, acks->size);
        eventfd_write(self->wake_fd, 1);
    } else if (port_send(port, acks->bytes, acks->size, NULL, 0)) {
        eventfd_write(self->wake_fd, 1);
    }
    pthread_mutex_unlock(&port->lock);
    double now = clock_seconds();
    for (size_t i = 0; i < acks->size / ACK_BYTES; i++)
        table_record(&self->table, STAGE_ACK, now - acks->written[i]);
    acks->size = 0;
    acks->data = 0;
}

static void add_ack(const Receiver *r, Acks *acks, const unsigned char *data, uint32_t length, uint32_t sequence,
                    double written, int kind)
{
    acks->written[acks->size / ACK_BYTES] = written;
    unsigned char *to = acks->bytes + acks->size;
    memcpy(to, data, 6); /* magic and volume */
    to[6] = 0;
    to[7] = (unsigned char)kind;
    put32(to + 8, ACK_BYTES - HEADER);
    put32(to + 12, 0);
    memcpy(to + 16, data + HEADER, 16); /* sector and block id */
    put32(to + 32, length);
    put32(to + 36, sequence);
    acks->size += ACK_BYTES;
    acks->data += length;
    if (acks->size == sizeof acks->bytes || acks->data >= ACKS_DATA)
        send_acks(r, acks);
}

/* One DATA at `p`. 1: dealt with; 0: it is for Python; -1: Python has taken it over while it was written. */
static int take_data(const Receiver *r, const unsigned char *p, uint32_t length, Acks *acks, int *disk_error)
{
    Lane *self = r->lane;
    Table *t = &self->table;
    uint64_t sector = get64(p + 16), offset = sector * SECTOR;
    uint32_t size = length - HEADER - DATA_HEAD;
    double begun = clock_seconds();
    if (sector >> 54)
        return 0;
    pthread_mutex_lock(&self->mutex->lock);
    Port *port = r->ports[META];
    int slow = volume(p) != t->volume || get32(p + 36) != t->flags || !t->backing || port->backlog || port->failed;
    if (slow || table_peer_begin(t, offset, size, get64(p + 24)) < 0) {
        pthread_mutex_unlock(&self->mutex->lock);
        return 0;
    }
    Backing *backing = t->backing;
    backing->users++;
    pthread_mutex_unlock(&self->mutex->lock);
    *disk_error = write_all(backing->fd, p + HEADER + DATA_HEAD, size, offset);
    double written = clock_seconds();
    pthread_mutex_lock(&self->mutex->lock);
    backing_leave(backing);
    int taken = *disk_error || !table_peer_done(t); /* Python's, until peer_over */
    int kind = t->bits.buf ? P_RS_WRITE_ACK : P_WRITE_ACK;
    uint32_t sequence = taken ? 0 : ++t->sequence;
    pthread_mutex_unlock(&self->mutex->lock);
    if (taken)
        return -1;
    table_record(t, STAGE_PEER_DISK, written - begun);
    add_ack(r, acks, p, size, sequence, written, kind);
    return 1;
}

/* --- one socket -------------------------------------------------------------------------------- */
/* Read what is there. 1: something came, 0: nothing, -1: the end, -1 - errno: it failed. */
static int fill(Inbox *in, int fd)
{
    if (in->start == in->end)
        in->start = in->end = 0;
    if (INBUF - in->end < (256 << 10) && in->start) {
        memmove(in->bytes, in->bytes + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    if (in->end == INBUF)
        return 1; /* complete frames are in there, and the kernel keeps the rest */
    ssize_t n = recv(fd, in->bytes + in->end, INBUF - in->end, MSG_DONTWAIT);
    if (n > 0) {
        in->end += (size_t)n;
        in->heard = 1;
        return 1;
    }
    if (n == 0)
        return -1;
    return errno == EAGAIN || errno == EINTR ? 0 : -1 - errno;
}

/* Bytes at the front that are for Python: whole frames, up to the first that the lane may take. */
static size_t for_python(Lane *self, const Inbox *in, int channel)
{
    const unsigned char *p = in->bytes + in->start;
    size_t have = in->end - in->start, taken = 0;
    if (in->through)
        return have;
    for (;;) {
        long length = frame_length(p + taken, have - taken);
        if (length <= 0 || (taken && is_lanes(&self->table, channel, p + taken)))
            return taken;
        taken += (size_t)length;
    }
}

typedef struct {
    int fast, disk_error, taken;
} Found;

/* Deal with the frames at the front that are the lane's. The bytes that are for Python now. */
static size_t take_frames(const Receiver *r, int channel, Found *found, Acks *acks)
{
    Lane *self = r->lane;
    Inbox *in = &self->inboxes[channel];
    for (;;) {
        const unsigned char *p = in->bytes + in->start;
        size_t have = in->end - in->start;
        long length = in->through ? 0 : frame_length(p, have);
        if (length < 0)
            in->through = 1;
        if (length <= 0)
            break;
        if (!is_lanes(&self->table, channel, p))
            break;
        if (channel == META) {
            size_t taken = take_acks(self, p, have);
            if (!taken)
                break;
            in->start += taken;
        } else if (command(p) == P_RS_DATA_REQUEST || command(p) == P_RS_THIN_REQ) {
            if (!answer_for_peer(self, r->ports[DATA], p))
                break;
            in->start += (size_t)length;
        } else if (command(p) == P_BARRIER && length == BARRIER_BYTES && !volume(p)) {
            send_acks(r, acks); /* they are waited for, and go before its own */
            if (!flush_for_peer(self, r->ports[META], p))
                break;
            in->start += (size_t)length;
        } else if (command(p) == P_DATA && length > HEADER + DATA_HEAD) {
            int result = take_data(r, p, (uint32_t)length, acks, &found->disk_error);
            if (!result)
                break;
            in->start += (size_t)length;
            if (result < 0) {
                found->taken = 1;
                break;
            }
        } else {
            break;
        }
        found->fast = 1;
    }
    size_t others = found->taken ? 0 : for_python(self, in, channel);
    if (others || found->taken)
        send_acks(r, acks);
    return others;
}

/* --- one call ---------------------------------------------------------------------------------- */
/* Read, and deal with what is the lane's. What fill() gives; `size` is for Python. */
static int take_some(const Receiver *r, int channel, Found *found, Acks *acks, size_t *size)
{
    Inbox *in = &r->lane->inboxes[channel];
    int came = 0;
    pthread_mutex_lock(&in->lock);
    if (r->session == r->lane->session && !in->over && port_reader(r->ports[channel], 1)) {
        came = fill(in, r->ports[channel]->fd);
        port_reader(r->ports[channel], -1);
        *size = take_frames(r, channel, found, acks);
        in->over = came < 0 && !*size && !found->taken; /* here: later it may be the inbox of the next session */
    }
    pthread_mutex_unlock(&in->lock);
    return came;
}

typedef struct {
    int error;
    size_t size;
    Found found;
} Event;

/* Looks at the socket between two looks at who calls. */
#define ROUNDS 16

/* Wait for more, at most so long. 0: there is nothing, or the thread is called elsewhere. */
static int wait_for_more(const Receiver *r, int channel, int ms)
{
    Lane *self = r->lane;
    struct pollfd fds[2] = {{.events = POLLIN}, {.fd = channel == DATA ? self->data_fd : self->wake_fd, .events = POLLIN}};
    Port *port = r->ports[channel];
    if (!port_reader(port, 1))
        return 0;
    fds[0].fd = port->fd;
    int ready = poll(fds, 2, ms);
    port_reader(port, -1);
    return ready > 0 && !fds[1].revents;
}

/* Without the interpreter's lock. 1: there is something for Python. */
static int receive(const Receiver *r, int channel, int linger_ms, double most, Event *event)
{
    Lane *self = r->lane;
    double until = clock_seconds() + most;
    Acks acks;
    acks.size = acks.data = 0;
    for (int rounds = 1;; rounds++) {
        int came = take_some(r, channel, &event->found, &acks, &event->size);
        if (event->size || event->found.taken)
            return 1;
        if (came < 0) {
            send_acks(r, &acks);
            event->error = -1 - came;
            return 1;
        }
        /* More may have come meanwhile: looking costs less than waiting. */
        if (came && rounds % ROUNDS)
            continue;
        send_acks(r, &acks);
        double left = until - clock_seconds();
        int busy = channel == DATA || event->found.fast;
        if (!busy || left < 0 || r->session != self->session)
            return 0;
        if (!wait_for_more(r, channel, linger_ms))
            return 0;
    }
}

/* receive(channel, linger_ms, most_seconds): see _native.pyi. */
PyObject *lane_receive(Lane *self, PyObject *args)
{
    int channel, linger, found;
    double most;
    Event event = {0};
    eventfd_t calls;
    if (!PyArg_ParseTuple(args, "iid", &channel, &linger, &most))
        return NULL;
    channel &= 1;
    if (!self->ports[DATA])
        Py_RETURN_NONE;
    Receiver r = {.lane = self, .ports = {self->ports[DATA], self->ports[META]}, .session = self->session};
    r.ports[DATA]->users++;
    r.ports[META]->users++;
    if (channel == DATA)
        eventfd_read(self->data_fd, &calls);
    Py_BEGIN_ALLOW_THREADS
    found = receive(&r, channel, linger, most, &event);
    Py_END_ALLOW_THREADS
    port_leave(r.ports[DATA]);
    port_leave(r.ports[META]);
    if (!found)
        Py_RETURN_NONE;
    Inbox *in = &self->inboxes[channel];
    if (event.found.taken)
        return Py_BuildValue("Oi", Py_None, event.found.disk_error);
    if (!event.size)
        return Py_BuildValue("ii", 0, event.error);
    PyObject *bytes = NULL;
    pthread_mutex_lock(&in->lock);
    int same = r.session == self->session;
    if (same && (bytes = PyBytes_FromStringAndSize((char *)in->bytes + in->start, (Py_ssize_t)event.size)))
        in->start += event.size;
    pthread_mutex_unlock(&in->lock);
    if (!same)
        Py_RETURN_NONE;
    return bytes;
}
