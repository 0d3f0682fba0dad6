/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The source of a resync: the target's requests for blocks, answered by the data thread.
 *
 * What is simple only: no write to the blocks is under way on this disk, and nothing of the engine's is in work there.
 * A write that begins while they are read makes the answer void, and the engine gives another one, in its order.
 * Whether it is void is decided with the outlet's lock held, and the answer leaves before that is let go of: so
 * the packet of every later write leaves behind it.
 *
 * The thread waits, not the answers: it reads a block only when the socket has little left to send, so that a client's
 * write has not much before it; and what the kernel did not take of an answer it sends itself.
 */
#include "hot.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST_BYTES (HEADER + 24)
#define ANSWER_HEAD (HEADER + DATA_HEAD)
/* linux/sockios.h: bytes that the kernel has taken and not yet sent once. */
#define UNSENT_BYTES 0x894B
/* A block is read when so little is unsent; looked at so often, and so long: then the engine has to wait. */
#define AHEAD (512 << 10)
#define LOOK_NS 250000
#define LONGEST_WAIT 0.1

static uint64_t wire_command(unsigned command, unsigned volume)
{
    return (uint64_t)H100_MAGIC << 32 | (uint64_t)volume << 16 | command;
}

/* Wait a moment, or until the thread is called elsewhere. With a descriptor: or until that takes more. 0: called. */
static int moment(Lane *self, int fd)
{
    struct pollfd fds[2] = {{.fd = self->data_fd, .events = POLLIN}, {.fd = fd, .events = POLLOUT}};
    struct timespec least = {.tv_nsec = LOOK_NS}, longer = {.tv_nsec = 5000000};
    ppoll(fds, fd < 0 ? 1 : 2, fd < 0 ? &least : &longer, NULL);
    return !fds[0].revents;
}

/* 1: there is room for an answer. */
static int wait_for_room(Lane *self, Port *port)
{
    double until = clock_seconds() + LONGEST_WAIT;
    int room = 0, goes_on = 1;
    if (!port_reader(port, 1))
        return 0;
    while (!room && goes_on) {
        int unsent = 0;
        room = ioctl(port->fd, UNSENT_BYTES, &unsent) < 0 || unsent <= AHEAD; /* not every socket tells */
        if (!room)
            goes_on = clock_seconds() < until && moment(self, -1);
    }
    port_reader(port, -1);
    return room;
}

/* Send what is left of an answer; what is not gone soon is the loop's thread's. */
static void send_rest(Lane *self, Port *port)
{
    double until = clock_seconds() + LONGEST_WAIT;
    int left = 1;
    while (left && clock_seconds() < until && port_reader(port, 1)) {
        int goes_on = moment(self, port->fd);
        port_reader(port, -1);
        if (!goes_on)
            break;
        pthread_mutex_lock(&port->lock);
        left = port_drain(port);
        pthread_mutex_unlock(&port->lock);
    }
    if (left)
        eventfd_write(self->wake_fd, 1);
}

static int read_all(int fd, unsigned char *to, size_t left, uint64_t offset)
{
    while (left) {
        ssize_t done = pread(fd, to, left, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return 0; /* the engine reads again, and acts on the error */
        to += done;
        offset += (uint64_t)done;
        left -= (size_t)done;
    }
    return 1;
}

static int is_zero(const unsigned char *p, size_t size)
{
    return !p[0] && !memcmp(p, p + 1, size - 1);
}

/* The answer's frame up to its data; its length. */
static size_t answer_head(unsigned char *head, const unsigned char *request, uint32_t size, int full)
{
    unsigned volume = (unsigned)request[4] << 8 | request[5];
    put64(head, wire_command(full ? P_RS_DATA_REPLY : P_RS_DEALLOCATED, volume));
    put32(head + 12, 0);
    memcpy(head + HEADER, request + HEADER, 8); /* sector */
    if (full) {
        put32(head + 8, DATA_HEAD + size);
        memcpy(head + HEADER + 8, request + HEADER + 8, 8); /* block id */
        memset(head + HEADER + 16, 0, 8);
        return ANSWER_HEAD;
    }
    put32(head + 8, 16);
    put32(head + HEADER + 8, size);
    put32(head + HEADER + 12, 0);
    return HEADER + 16;
}

/* Take the request as ours. NULL: it is the engine's. */
static Backing *begin(Lane *self, uint64_t offset, uint32_t size)
{
    Table *t = &self->table;
    Backing *backing = NULL;
    pthread_mutex_lock(&self->mutex->lock);
    if (t->backing && table_answer_begin(t, offset, size)) {
        backing = t->backing;
        backing->users++;
    }
    pthread_mutex_unlock(&self->mutex->lock);
    return backing;
}

int answer_for_peer(Lane *self, Port *port, const unsigned char *p)
{
    Table *t = &self->table;
    uint64_t sector = get64(p + HEADER);
    uint32_t size = get32(p + HEADER + 16);
    unsigned char head[ANSWER_HEAD];
    if (get32(p + 8) != REQUEST_BYTES - HEADER || (((unsigned)p[4] << 8) | p[5]) != t->volume || sector >> 54)
        return 0;
    if (!self->reading && !(self->reading = malloc(MAX_DATA)))
        return 0;
    Backing *backing = wait_for_room(self, port) ? begin(self, sector * SECTOR, size) : NULL;
    if (!backing)
        return 0;
    int ok = read_all(backing->fd, self->reading, size, sector * SECTOR);
    int full = !ok || p[7] != P_RS_THIN_REQ || !is_zero(self->reading, size);
    size_t head_size = answer_head(head, p, size, full);

    pthread_mutex_lock(&port->lock);
    pthread_mutex_lock(&self->mutex->lock);
    backing_leave(backing);
    /* Whole packets that Python has queued may be overtaken: none of them is about these blocks. */
    ok = ok && port->fd >= 0 && !port->failed && !port->spill && !port->half;
    ok = table_answer_end(t, ok, full);
    pthread_mutex_unlock(&self->mutex->lock);
    int left = ok && port_send(port, head, head_size, self->reading, full ? size : 0);
    pthread_mutex_unlock(&port->lock);
    if (left)
        send_rest(self, port);
    return ok;
}
