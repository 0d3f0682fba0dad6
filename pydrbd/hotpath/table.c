/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of a lane: which writes are under way, in which epoch, on which extents and bytes.
 *
 * Pure bookkeeping, all of it under the driver's mutex; no system call but to wake a flush, and of Python only
 * the release of the bits, when the engine closes the lane.
 * Invariants:
 * - A write is in exactly one slot until it is complete, and in exactly one epoch until that is confirmed.
 * - An extent's count is the number of writes on it whose epoch is not confirmed or whose local write is
 *   not over; writes begin on hot extents only.
 * - No two writes in slots overlap, and none overlaps a range that Python works on.
 * - A bit is cleared when both disks have written the blocks that it stands for, and the engine hears of it before it
 *   looks at the bitmap again (engine/bitmap.py). That the data are durable before the page of the bitmap is written
 *   is the engine's care, as with bits that it clears itself.
 * - What was read for the resync is sent only if no write to it has begun since.
 */
#include "hot.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

double clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* --- extents ----------------------------------------------------------------------------------- */
static void hold_extents(Table *t, uint64_t offset, uint32_t length, int by)
{
    uint64_t last = (offset + length - 1) >> EXTENT_SHIFT;
    for (uint64_t e = offset >> EXTENT_SHIFT; e <= last; e++)
        t->refs[e] += (uint32_t)by;
}

static int all_hot(const Table *t, uint64_t offset, uint32_t length)
{
    uint64_t last = (offset + length - 1) >> EXTENT_SHIFT;
    for (uint64_t e = offset >> EXTENT_SHIFT; e <= last; e++)
        if (e >= t->extents || !t->hot[e])
            return 0;
    return 1;
}

void table_heat(Table *t, uint64_t extent, int hot)
{
    if (extent < t->extents)
        t->hot[extent] = (unsigned char)hot;
}

/* --- ranges ------------------------------------------------------------------------------------ */
int table_overlaps(const Table *t, uint64_t offset, uint64_t end)
{
    for (int w = 0; w < SLOTS / 64; w++)
        for (uint64_t bits = t->used[w]; bits; bits &= bits - 1) {
            int i = w * 64 + __builtin_ctzll(bits);
            const Slot *s = &t->slots[i];
            if (s->state == SLOT_BUSY && s->offset < end && offset < s->offset + s->length)
                return i;
        }
    return SLOW;
}

static int is_blocked(const Table *t, uint64_t offset, uint64_t end)
{
    if (t->too_many_blocked)
        return 1;
    for (uint32_t i = 0; i < t->blocked; i++)
        if (t->ranges[i].start < end && offset < t->ranges[i].end)
            return 1;
    return 0;
}

void table_block(Table *t, uint64_t start, uint64_t end)
{
    table_answer_stale(t, start, end);
    if (t->blocked == BLOCKED) {
        t->too_many_blocked++;
        return;
    }
    t->ranges[t->blocked].start = start;
    t->ranges[t->blocked++].end = end;
}

void table_unblock(Table *t, uint64_t start, uint64_t end)
{
    for (uint32_t i = 0; i < t->blocked; i++)
        if (t->ranges[i].start == start && t->ranges[i].end == end) {
            t->ranges[i] = t->ranges[--t->blocked];
            return;
        }
    if (t->too_many_blocked)
        t->too_many_blocked--;
}

/* --- bits -------------------------------------------------------------------------------------- */
int table_look_at(Table *t, Py_buffer bits)
{
    t->pages = ((uint64_t)bits.len + BLOCK - 1) / BLOCK;
    if (!(t->page_cleared = calloc(t->pages + 1, 1)))
        return 0;
    t->bits = bits;
    t->flags |= DP_MAY_SET_IN_SYNC;
    t->first_page = t->pages;
    t->end_page = t->cleared = 0;
    return 1;
}

static void page_was_cleared(Table *t, uint64_t page)
{
    t->page_cleared[page] = 1;
    if (page < t->first_page)
        t->first_page = page;
    if (page >= t->end_page)
        t->end_page = page + 1;
}

void table_clear(Table *t, uint64_t offset, uint32_t length)
{
    unsigned char *bits = t->bits.buf;
    uint64_t end = offset + length;
    if (!bits)
        return;
    /* A block that is covered in part may differ elsewhere; the last one of the device may be short. */
    uint64_t last = end >= t->size ? (t->size + BLOCK - 1) / BLOCK : end / BLOCK;
    for (uint64_t n = (offset + BLOCK - 1) / BLOCK; n < last && n / 8 < (uint64_t)t->bits.len; n++)
        if (bits[n / 8] >> (n % 8) & 1) {
            bits[n / 8] &= (unsigned char)~(1u << (n % 8));
            t->cleared++;
            page_was_cleared(t, n / 8 / BLOCK);
        }
}

/* --- a client's write -------------------------------------------------------------------------- */
static int free_slot(const Table *t)
{
    for (int w = 0; w < SLOTS / 64; w++)
        if (~t->used[w])
            return w * 64 + __builtin_ctzll(~t->used[w]);
    return SLOW;
}

static Member *new_member(Epoch *e)
{
    if (e->used == e->room) {
        uint32_t room = e->room ? e->room * 2 : 64;
        Member *more = realloc(e->members, room * sizeof(Member));
        if (!more)
            return NULL;
        e->members = more;
        e->room = room;
    }
    return &e->members[e->used++];
}

int table_begin(Table *t, uint64_t offset, uint32_t length, double now)
{
    if (t->mode != MODE_CLIENT || !length || length > MAX_DATA || (offset | length) % SECTOR)
        return SLOW;
    if (offset >= t->size || length > t->size - offset || !all_hot(t, offset, length))
        return SLOW;
    if (t->logged >= t->max_logged || (t->current && t->current->count >= t->max_epoch))
        return SLOW;
    int i = free_slot(t);
    if (i < 0 || is_blocked(t, offset, offset + length) || table_overlaps(t, offset, offset + length) >= 0)
        return SLOW;
    if (!t->current && !(t->current = calloc(1, sizeof(Epoch))))
        return SLOW;
    Epoch *e = t->current;
    Member *m = new_member(e);
    if (!m)
        return SLOW;
    if (!e->count)
        t->opened = now;
    e->count++;
    e->unacked++;
    t->logged++;
    t->used[i / 64] |= 1ull << (i % 64);
    uint64_t ident = IDENT_BIT | (++t->counter << 7 & (IDENT_BIT - 1)) | (uint64_t)i;
    t->slots[i] = (Slot){.state = SLOT_BUSY, .epoch = e, .index = e->used - 1, .length = length,
                         .offset = offset, .ident = ident, .sent_at = now};
    *m = (Member){.offset = offset, .ident = ident, .length = length};
    hold_extents(t, offset, length, 1);
    table_answer_stale(t, offset, offset + length);
    t->in_flight++;
    t->bytes_in_flight += length;
    t->sent_bytes += length;
    return i;
}

int table_find(const Table *t, uint64_t ident, uint64_t offset, uint32_t length)
{
    if (!(ident & IDENT_BIT))
        return SLOW;
    int i = (int)(ident & (SLOTS - 1));
    const Slot *s = &t->slots[i];
    if (s->state != SLOT_BUSY || s->ident != ident || s->offset != offset || s->length != length || s->acked)
        return SLOW;
    return i;
}

void table_acked(Table *t, int slot, int in_sync)
{
    Slot *s = &t->slots[slot];
    s->acked = 1;
    s->in_sync = in_sync;
    t->bytes_in_flight -= s->length;
    if (s->epoch)
        s->epoch->unacked--;
}

static void leave_slot(Table *t, int slot)
{
    t->slots[slot].state = SLOT_FREE;
    t->used[slot / 64] &= ~(1ull << (slot % 64));
}

int table_complete(Table *t, int slot)
{
    Slot *s = &t->slots[slot];
    if (s->state != SLOT_BUSY || !s->acked || s->local != LOCAL_OK)
        return 0;
    if (!s->epoch)
        hold_extents(t, s->offset, s->length, -1);
    if (s->in_sync)
        table_clear(t, s->offset, s->length);
    t->in_flight--;
    t->written += s->length;
    leave_slot(t, slot);
    return 1;
}

int table_local_done(Table *t, int slot, int ok)
{
    t->slots[slot].local = ok ? LOCAL_OK : LOCAL_FAILED;
    return table_complete(t, slot);
}

/* Python goes on with this write: the number of its epoch, or EPOCH_CURRENT, EPOCH_CONFIRMED. */
long table_take(Table *t, int slot)
{
    Slot *s = &t->slots[slot];
    Epoch *e = s->epoch;
    long number = EPOCH_CONFIRMED;
    hold_extents(t, s->offset, s->length, -1);
    if (e) {
        number = e == t->current ? EPOCH_CURRENT : (long)e->number;
        e->members[s->index].length = 0;
        e->count--;
        e->unacked -= !s->acked;
        t->logged--;
    }
    if (!s->acked)
        t->bytes_in_flight -= s->length;
    t->in_flight--;
    s->state = SLOT_TAKEN;
    if (s->waiter)
        s->waiter->taken = 1;
    return number;
}

/* --- epochs ------------------------------------------------------------------------------------ */
static void end_current(Table *t)
{
    Epoch *e = t->current;
    e->serial = ++t->serial;
    e->opened = t->opened;
    t->current = NULL;
    if (t->last)
        t->last->next = e;
    else
        t->sent = e;
    t->last = e;
}

/* The round of flushes that waits for the peer goes on. */
static void flush_goes_on(Table *t, int taken)
{
    Waiter *waiter = t->flush_waiter;
    t->flush_waiter = NULL;
    waiter->taken = taken;
    if (!taken)
        waiter->acked = clock_seconds();
    wake(waiter);
}

uint32_t table_cut(Table *t, uint32_t number)
{
    Epoch *e = t->current;
    if (!e || !e->count) /* all of it was taken over, or there is nothing */
        return 0;
    e->number = number;
    end_current(t);
    return e->count;
}

int table_cut_own(Table *t, uint32_t *number)
{
    if (!t->current || !t->current->count)
        return 0;
    *number = t->current->number = t->number++;
    t->current->own = 1;
    end_current(t);
    return 1;
}

int table_barrier_acked(Table *t, uint32_t number, uint32_t count)
{
    const Epoch *e = t->sent;
    if (t->mode != MODE_CLIENT || !e || !e->own || e->unacked || e->number != number || e->count != count)
        return 0;
    table_confirmed(t);
    return 1;
}

static void free_epoch(Epoch *e)
{
    free(e->members);
    free(e);
}

/* The oldest epoch is durable on the peer. */
void table_confirmed(Table *t)
{
    Epoch *e = t->sent;
    t->sent = e->next;
    if (!t->sent)
        t->last = NULL;
    for (uint32_t i = 0; i < e->used; i++) {
        Member *m = &e->members[i];
        if (!m->length)
            continue;
        t->logged--;
        Slot *s = &t->slots[m->ident & (SLOTS - 1)];
        if (s->state == SLOT_BUSY && s->ident == m->ident)
            s->epoch = NULL; /* its local write still holds the extents */
        else
            hold_extents(t, m->offset, m->length, -1);
    }
    t->confirmed = e->serial;
    if (t->flush_waiter && t->flush_serial <= e->serial)
        flush_goes_on(t, 0);
    free_epoch(e);
}

void table_reset(Table *t)
{
    while (t->sent) {
        Epoch *next = t->sent->next;
        free_epoch(t->sent);
        t->sent = next;
    }
    if (t->current)
        free_epoch(t->current);
    free(t->hot);
    free(t->refs);
    t->current = t->last = NULL;
    t->hot = NULL;
    t->refs = NULL;
    t->extents = 0;
    t->logged = 0;
    t->blocked = 0;
    t->too_many_blocked = 0;
    if (t->bits.buf)
        PyBuffer_Release(&t->bits);
    t->bits.buf = NULL;
    free(t->page_cleared);
    t->page_cleared = NULL;
    t->cleared = t->pages = t->end_page = 0;
    t->may_answer = 0;
    t->answer_void = 1;
    t->answered = 0;
    t->flags = DP_SYNC | DP_SEND_WRITE_ACK;
    t->may_flush = t->peer_may_flush = 0;
    t->confirmed = t->serial; /* nothing that was ended before is waited for */
    t->opening++;
    t->mode = MODE_CLOSED;
    if (t->flush_waiter)
        flush_goes_on(t, 1);
}

/* --- the peer's write -------------------------------------------------------------------------- */
int table_peer_begin(Table *t, uint64_t offset, uint32_t length, uint64_t ident)
{
    /* Whole blocks only: a part of one may have to be read first, which is no work for the loop's thread. */
    if (t->mode != MODE_PEER || t->peer_busy || !length || length > MAX_DATA || (offset | length) % BLOCK)
        return SLOW;
    if (offset >= t->size || length > t->size - offset || is_blocked(t, offset, offset + length))
        return SLOW;
    t->peer_busy = 1;
    t->peer_taken = 0;
    t->peer_offset = offset;
    t->peer_length = length;
    t->peer_ident = ident;
    return 0;
}

int table_peer_done(Table *t)
{
    if (t->peer_taken)
        return 0;
    t->peer_busy = 0;
    t->peer_count++;
    t->received += t->peer_length;
    table_clear(t, t->peer_offset, t->peer_length);
    return 1;
}

/* --- requests of the resync ---------------------------------------------------------------------- */
int table_answer_begin(Table *t, uint64_t offset, uint32_t length)
{
    uint64_t end = offset + length;
    if (!t->may_answer || t->answering || t->answered == ANSWERS)
        return 0;
    if (!length || length > MAX_DATA || length % SECTOR || offset >= t->size || length > t->size - offset)
        return 0;
    if (is_blocked(t, offset, end))
        return 0;
    for (int i = 0; i < SLOTS; i++) {
        /* A write that is on this disk is in what is read; that the peer has it, too, is not waited for. */
        const Slot *s = &t->slots[i];
        if (s->state == SLOT_BUSY && s->local != LOCAL_OK && s->offset < end && offset < s->offset + s->length)
            return 0;
    }
    t->answering = 1;
    t->answer_void = 0;
    t->answer_offset = offset;
    t->answer_length = length;
    return 1;
}

int table_answer_end(Table *t, int ok, int full)
{
    int good = ok && t->answering && !t->answer_void;
    t->answering = 0;
    if (!good)
        return 0;
    t->answers[t->answered++] = (Answer){t->answer_offset, t->answer_length, full};
    return 1;
}

void table_answer_stale(Table *t, uint64_t offset, uint64_t end)
{
    if (t->answering && t->answer_offset < end && offset < t->answer_offset + t->answer_length)
        t->answer_void = 1;
}

/* --- times ------------------------------------------------------------------------------------- */
/* Four buckets an octave, from 1 ns on; see runtime/histogram.py. */
void table_record(Table *t, int stage, double seconds)
{
    uint64_t ns = seconds <= 0 ? 1 : (uint64_t)(seconds * 1e9) | 1;
    int octave = 63 - __builtin_clzll(ns);
    int part = octave >= 2 ? (int)(ns >> (octave - 2) & 3) : 0;
    int bucket = octave * 4 + part;
    atomic_fetch_add_explicit(&t->histogram[stage][bucket < BUCKETS ? bucket : BUCKETS - 1], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->nanoseconds[stage], ns, memory_order_relaxed);
}
