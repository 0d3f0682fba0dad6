/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The compiled hot path: what its parts share.
 *
 * Subject: the writes of a healthy pair (Primary, connected, both disks UpToDate, protocol C), done
 * without the interpreter's lock. Everything else stays with the engine in Python, which may take a
 * write over at any moment. pydrbd/engine/lane.py says when a lane is open and what it may do;
 * pydrbd/sim/lane.py does the same steps in Python, for the simulator.
 *
 * Order of locks: an outlet's lock, then the mutex. The interpreter's lock is taken by a thread that holds
 * neither, or by one that holds the mutex and came from Python (whose acquire lets go of it while it waits).
 */
#ifndef PYDRBD_HOT_H
#define PYDRBD_HOT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdint.h>

#define SECTOR 512
#define BLOCK 4096
#define EXTENT_SHIFT 22
#define MAX_DATA (1u << 20)
#define HEADER 16
#define DATA_HEAD 24
#define BARRIER_BYTES (HEADER + 8)
#define H100_MAGIC 0x8620ec20u
#define P_DATA 0x00
#define P_RS_DATA_REPLY 0x02
#define P_BARRIER 0x03
#define P_RS_DATA_REQUEST 0x09
#define P_WRITE_ACK 0x16
#define P_RS_WRITE_ACK 0x17
#define P_BARRIER_ACK 0x1c
#define P_RS_THIN_REQ 0x32
#define P_RS_DEALLOCATED 0x33
#define DP_SYNC 2u
#define DP_SEND_WRITE_ACK 256u
#define DP_MAY_SET_IN_SYNC 4u
/* Block ids of a lane: this bit, a counter, and the number of the slot. */
#define IDENT_BIT (1ull << 62)

/* --- the mutex of the driver ------------------------------------------------------------------ */
typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
} Mutex;
extern PyTypeObject MutexType;

/* --- where packets leave: one socket ---------------------------------------------------------- */
typedef struct {
    _Atomic long users; /* freed with the last one */
    int fd;
    pthread_mutex_t lock;
    /* Packets that Python has queued and not yet handed to the kernel; nothing may overtake them. Grows
     * only under the driver's mutex, shrinks only under `lock`. */
    _Atomic long backlog;
    /* What the kernel did not take of a packet of ours; Python sends it first. Under `lock`. */
    unsigned char *spill;
    size_t spill_size;
    int readers; /* threads that use it for reading right now; closed only without any. Under `lock` */
    int half;    /* Python has sent a part of a packet. Under `lock` */
    uint64_t taken; /* bytes that the kernel has taken of spills that were sent here. Under `lock` */
    int failed; /* errno of a send, for Python to find */
} Port;

typedef struct {
    PyObject_HEAD
    Port *port;
} Outlet;
extern PyTypeObject OutletType;

void port_leave(Port *port);
/* Begin (1) or end (-1) to use the descriptor for reading. 0: it is closed. */
int port_reader(Port *port, int by);

/* Send all of two buffers, or keep the rest as spill. With `lock`. 0: all is with the kernel, 1: not all. */
int port_send(Port *port, const void *head, size_t head_size, const void *body, size_t body_size);
/* Send more of the spill. With `lock`. 1: some of it is left. */
int port_drain(Port *port);
/* Have Python send these whole packets as soon as it can. With `lock`. */
void port_append(Port *port, const void *bytes, size_t size);

/* --- making a disk durable ---------------------------------------------------------------------- */
/* fdatasync() shared by all who wait: one that starts after my call covers me too. A failure is sticky: the
 * kernel reports a lost write once and then forgets it, so nothing after it may be called durable until the
 * disk is opened anew. */
typedef struct {
    _Atomic long users; /* freed with the last one */
    pthread_mutex_t lock;
    pthread_cond_t over;
    unsigned long started, finished;
    int error;
} Flusher;

typedef struct {
    PyObject_HEAD
    Flusher *flusher;
} FlusherObject;
extern PyTypeObject FlusherType;

/* 0 or an errno. `fd`: any descriptor of the disk's one open file. */
int flusher_flush(Flusher *flusher, int fd);
void flusher_leave(Flusher *flusher);

/* --- the table of writes ---------------------------------------------------------------------- */
#define SLOTS 128
#define BLOCKED 64
enum { SLOT_FREE, SLOT_BUSY, SLOT_TAKEN };
enum { LOCAL_RUNS, LOCAL_OK, LOCAL_FAILED };
enum { MODE_CLOSED, MODE_CLIENT, MODE_PEER };
enum { SLOW = -1 };
enum { EPOCH_CONFIRMED = -1, EPOCH_CURRENT = -2 };

typedef struct {
    uint64_t offset, ident;
    uint32_t length; /* 0: taken over by Python */
} Member;

typedef struct Epoch {
    struct Epoch *next;
    uint32_t number, count, unacked, used, room;
    int own; /* a flush of the lane has ended it, and the engine does not know it yet */
    uint64_t serial;
    double opened;
    Member *members;
} Epoch;

/* A descriptor of the disk; closed by the last one that uses it. Under the mutex. */
typedef struct {
    int fd, users;
    Flusher *flusher;
} Backing;

typedef struct {
    uint32_t word; /* futex: 0 waiting, 1 over */
    int taken;
    double acked; /* when the peer's answer was read; 0: not yet. Under the mutex */
} Waiter;

typedef struct {
    int state, local, acked;
    int in_sync; /* the peer's answer says so: RS_WRITE_ACK */
    Epoch *epoch; /* NULL: its epoch is confirmed already */
    uint32_t index, length;
    uint64_t offset, ident;
    double sent_at;
    Waiter *waiter;
} Slot;

/* An answer of the source of a resync; `full`: with data, else it says that they are zero. */
#define ANSWERS 1024
typedef struct {
    uint64_t offset;
    uint32_t length;
    int full;
} Answer;

enum { STAGE_QUEUE, STAGE_SEND, STAGE_DISK, STAGE_PEER, STAGE_TOTAL, STAGE_PEER_DISK, STAGE_ACK, STAGE_READ, STAGE_WAKE,
       STAGE_FLUSH, STAGE_FLUSH_DISK, STAGE_FLUSH_PEER, STAGE_PEER_FLUSH, STAGES };
#define BUCKETS 160

typedef struct {
    int mode;
    unsigned volume;
    uint64_t size;
    Backing *backing;
    int readable;
    uint32_t max_epoch, max_logged;
    uint32_t sequence;
    /* While a resync runs: the out-of-sync bits, a bit for each BLOCK; all who change them do so under the mutex. */
    Py_buffer bits;
    /* What was cleared here since the engine asked last: how many bits, and on which pages of the bitmap. */
    uint64_t cleared, pages, first_page, end_page;
    unsigned char *page_cleared;
    /* Source: the answer to a request of the resync that is being read; `answers`: those given since the engine
     * asked last. */
    int may_answer, answering, answer_void;
    uint64_t answer_offset;
    uint32_t answer_length, answered;
    Answer answers[ANSWERS];
    uint32_t flags; /* of the DATA packets that the lane sends or takes */
    uint64_t counter;
    /* Extents of the activity log. */
    uint64_t extents;
    unsigned char *hot;
    uint32_t *refs;
    /* Client. */
    Slot slots[SLOTS];
    uint64_t used[SLOTS / 64];
    uint32_t in_flight;
    uint64_t bytes_in_flight;
    Epoch *current, *sent, *last;
    uint32_t logged;
    double opened;
    double ack_seconds; /* how long the peer's answers take, smoothed */
    /* Flushes. `may_flush`: the engine has no epochs of its own open or unconfirmed. */
    int may_flush;
    uint64_t opening;            /* counts how often the lane was opened or closed */
    uint32_t number;             /* of the current epoch */
    uint64_t serial, confirmed;  /* of the youngest epoch that was ended, and of the youngest confirmed */
    unsigned long rounds, rounds_over, rounds_good; /* the last one begun, ended, ended well */
    pthread_cond_t round_over;
    Waiter *flush_waiter; /* of the round that waits for `flush_serial` */
    uint64_t flush_serial;
    double flush_wait; /* how much longer than this disk the peer takes, smoothed; only a round changes it */
    /* Ranges that Python works on. */
    uint32_t blocked;
    int too_many_blocked;
    struct { uint64_t start, end; } ranges[BLOCKED];
    /* Peer: one write at a time. */
    int peer_busy, peer_taken;
    uint64_t peer_offset, peer_ident;
    uint32_t peer_length, peer_count;
    int peer_may_flush;    /* the open epoch has writes of the lane only, and is the only one */
    double flush_seconds;  /* how long a flush for the peer takes, smoothed */
    /* Sums since they were last asked for. */
    uint64_t written, sent_bytes, received, read;
    /* Without the mutex, only ever counted up (runtime/latency.py subtracts what was there at a reset). */
    _Atomic uint64_t histogram[STAGES][BUCKETS], nanoseconds[STAGES];
} Table;

double clock_seconds(void);
/* Use these bits, or none. 0: no memory. */
int table_look_at(Table *t, Py_buffer bits);
/* Both disks have the same in this range: clear the bits of the blocks that it covers. */
void table_clear(Table *t, uint64_t offset, uint32_t length);
int table_begin(Table *t, uint64_t offset, uint32_t length, double now);
void table_acked(Table *t, int slot, int in_sync);
int table_find(const Table *t, uint64_t ident, uint64_t offset, uint32_t length);
/* 1: the write is complete, its slot is free again. */
int table_complete(Table *t, int slot);
int table_local_done(Table *t, int slot, int ok);
int table_overlaps(const Table *t, uint64_t offset, uint64_t end);
long table_take(Table *t, int slot);
uint32_t table_cut(Table *t, uint32_t number);
/* The current epoch ends because of a flush of the lane. 1: it had writes, `number` is its BARRIER's. */
int table_cut_own(Table *t, uint32_t *number);
/* BARRIER_ACK: 1: it is of an epoch that the engine does not know, which is confirmed now; 0: it is not. */
int table_barrier_acked(Table *t, uint32_t number, uint32_t count);
void table_confirmed(Table *t);
void table_heat(Table *t, uint64_t extent, int hot);
void table_block(Table *t, uint64_t start, uint64_t end);
void table_unblock(Table *t, uint64_t start, uint64_t end);
void table_reset(Table *t);
int table_peer_begin(Table *t, uint64_t offset, uint32_t length, uint64_t ident);
/* The peer's write is on the disk. 0: Python has taken it over. */
int table_peer_done(Table *t);
/* A request of the resync, on its source: 1: it is being answered. */
int table_answer_begin(Table *t, uint64_t offset, uint32_t length);
/* It has been read. 1: the answer has to be sent, in the order of the caller's socket; 0: it is the engine's. */
int table_answer_end(Table *t, int ok, int full);
/* A write begins: what was read for the resync may be older. */
void table_answer_stale(Table *t, uint64_t offset, uint64_t end);
void table_record(Table *t, int stage, double seconds);

/* --- the Python type -------------------------------------------------------------------------- */
#define INBUF (MAX_DATA + (256 << 10))
typedef struct {
    unsigned char *bytes;
    size_t start, end;
    pthread_mutex_t lock; /* of who reads and takes frames */
    int through; /* what comes makes no sense: all of it goes to Python */
    int heard, over;
} Inbox;

typedef struct {
    PyObject_HEAD
    Mutex *mutex;
    Port *ports[2]; /* data, meta */
    Inbox inboxes[2];
    _Atomic unsigned session; /* counts them */
    int wake_fd, data_fd;     /* call the loop's thread, and the data thread */
    unsigned char *reading;   /* the data thread's: what is read for the resync */
    Table table;
} Lane;
extern PyTypeObject LaneType;

PyObject *lane_receive(Lane *self, PyObject *args);
PyObject *lane_write(Lane *self, PyObject *args);
PyObject *lane_read(Lane *self, PyObject *args);
PyObject *native_write_all(PyObject *module, PyObject *args);
PyObject *lane_serve(Lane *self, PyObject *args);
void wake(Waiter *waiter);
/* Wait for `wake`; the first one looks for it without a system call, and may come back before. */
#define SPIN_SECONDS 60e-6
void spin(const Waiter *waiter);
void wait_for(Waiter *waiter);
/* The socket that a client's packets leave by (to be left with port_leave), or NULL. */
Port *data_port(Lane *self);
/* A client's flush. 1: done; 0: it is the engine's. */
int flush_through(Lane *self);
/* A BARRIER of the peer: 1: acknowledged, 0: it is the engine's. The acks of its writes have been sent. */
int flush_for_peer(Lane *self, Port *meta, const unsigned char *barrier);
PyObject *lane_flush(Lane *self, PyObject *args);
/* A request of the resync, at `p`: 1: answered; 0: it is the engine's. */
int answer_for_peer(Lane *self, Port *data, const unsigned char *p);
void backing_leave(Backing *backing);
int write_all(int fd, const unsigned char *from, size_t size, uint64_t offset);

static inline void put32(unsigned char *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    __builtin_memcpy(p, &v, 4);
}
static inline void put64(unsigned char *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    __builtin_memcpy(p, &v, 8);
}
static inline uint32_t get32(const unsigned char *p)
{
    uint32_t v;
    __builtin_memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}
static inline uint64_t get64(const unsigned char *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

#endif
