/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The Python type Lane: the table's steps one by one (for the engine, which holds the mutex), and the calls that
 * do a whole piece of work without the interpreter's lock. hotpath/_native.pyi says what each takes and gives.
 */
#include "hot.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define NUMBER(name) static PyObject *name(Lane *self, void *unused)
#define METHOD(name) static PyObject *name(Lane *self, PyObject *args)

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *mutex;
    unsigned volume;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!I", &MutexType, &mutex, &volume))
        return NULL;
    Lane *self = (Lane *)type->tp_alloc(type, 0);
    if (self) {
        Py_INCREF(mutex);
        self->mutex = (Mutex *)mutex;
        self->wake_fd = -1;
        self->data_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        for (int i = 0; i < 2; i++)
            pthread_mutex_init(&self->inboxes[i].lock, NULL);
        pthread_cond_init(&self->table.round_over, NULL);
        self->table.volume = volume;
    }
    return (PyObject *)self;
}

static void drop_session(Lane *self)
{
    self->session++;
    for (int i = 0; i < 2; i++) {
        port_leave(self->ports[i]);
        self->ports[i] = NULL;
    }
}

static void lane_dealloc(Lane *self)
{
    drop_session(self);
    table_reset(&self->table);
    backing_leave(self->table.backing);
    for (int i = 0; i < 2; i++)
        PyMem_RawFree(self->inboxes[i].bytes);
    free(self->reading);
    close(self->data_fd);
    Py_CLEAR(self->mutex);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* --- the session ------------------------------------------------------------------------------- */
static int empty_inboxes(Lane *self)
{
    for (int i = 0; i < 2; i++)
        if (!self->inboxes[i].bytes && !(self->inboxes[i].bytes = PyMem_RawMalloc(INBUF)))
            return -1;
    /* A thread of the session before may still be at its last write, for as long as the disk takes. */
    if (pthread_mutex_trylock(&self->inboxes[0].lock))
        return 0;
    if (pthread_mutex_trylock(&self->inboxes[1].lock)) {
        pthread_mutex_unlock(&self->inboxes[0].lock);
        return 0;
    }
    self->session++;
    for (int i = 0; i < 2; i++) {
        Inbox *in = &self->inboxes[i];
        in->start = in->end = 0;
        in->through = in->over = in->heard = 0;
        pthread_mutex_unlock(&in->lock);
    }
    return 1;
}

METHOD(lane_attach)
{
    PyObject *data, *meta;
    int wake_fd;
    if (!PyArg_ParseTuple(args, "O!O!i", &OutletType, &data, &OutletType, &meta, &wake_fd))
        return NULL;
    drop_session(self);
    int empty = empty_inboxes(self);
    if (empty < 0)
        return PyErr_NoMemory();
    if (!empty)
        Py_RETURN_FALSE;
    self->ports[0] = ((Outlet *)data)->port;
    self->ports[1] = ((Outlet *)meta)->port;
    self->ports[0]->users++;
    self->ports[1]->users++;
    self->wake_fd = wake_fd;
    Py_RETURN_TRUE;
}

METHOD(lane_detach)
{
    (void)args;
    drop_session(self);
    Py_RETURN_NONE;
}

METHOD(lane_set_disk)
{
    int fd;
    PyObject *flusher = NULL;
    Backing *backing = NULL;
    if (!PyArg_ParseTuple(args, "i|O!", &fd, &FlusherType, &flusher))
        return NULL;
    if (fd >= 0 && flusher) {
        int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (own < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
        if (!(backing = malloc(sizeof *backing))) {
            close(own);
            return PyErr_NoMemory();
        }
        *backing = (Backing){own, 1, ((FlusherObject *)flusher)->flusher};
        backing->flusher->users++;
    }
    backing_leave(self->table.backing);
    self->table.backing = backing;
    Py_RETURN_NONE;
}

METHOD(lane_call_data)
{
    (void)args;
    eventfd_write(self->data_fd, 1);
    Py_RETURN_NONE;
}

METHOD(lane_heard)
{
    int channel;
    if (!PyArg_ParseTuple(args, "i", &channel))
        return NULL;
    int heard = self->inboxes[channel & 1].heard;
    self->inboxes[channel & 1].heard = 0;
    return PyBool_FromLong(heard);
}

/* --- open and close ---------------------------------------------------------------------------- */
/* The bits of a resync, or None. 0: an exception is set. */
static int look_at_bits(Table *t, PyObject *object)
{
    Py_buffer bits;
    if (object == Py_None)
        return 1;
    if (PyObject_GetBuffer(object, &bits, PyBUF_WRITABLE) < 0)
        return 0;
    if (table_look_at(t, bits))
        return 1;
    PyBuffer_Release(&bits);
    PyErr_NoMemory();
    return 0;
}

METHOD(lane_open_client)
{
    unsigned long long size;
    PyObject *hot;
    unsigned max_epoch, max_logged, number;
    PyObject *bits;
    Table *t = &self->table;
    if (!PyArg_ParseTuple(args, "KOIIIO", &size, &hot, &max_epoch, &max_logged, &number, &bits))
        return NULL;
    table_reset(t);
    if (!look_at_bits(t, bits))
        return NULL;
    t->extents = (size >> EXTENT_SHIFT) + 1;
    t->hot = calloc(t->extents, 1);
    t->refs = calloc(t->extents, sizeof *t->refs);
    PyObject *it = PyObject_GetIter(hot), *item;
    if (!t->hot || !t->refs || !it) {
        table_reset(t);
        Py_XDECREF(it);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    while ((item = PyIter_Next(it))) {
        table_heat(t, PyLong_AsUnsignedLongLong(item), 1);
        Py_DECREF(item);
    }
    Py_DECREF(it);
    if (PyErr_Occurred()) {
        table_reset(t);
        return NULL;
    }
    t->size = size;
    t->max_epoch = max_epoch;
    t->max_logged = max_logged;
    t->number = number;
    t->mode = MODE_CLIENT;
    Py_RETURN_TRUE;
}

METHOD(lane_open_peer)
{
    unsigned long long size;
    PyObject *bits;
    if (!PyArg_ParseTuple(args, "KO", &size, &bits))
        return NULL;
    table_reset(&self->table);
    if (!look_at_bits(&self->table, bits))
        return NULL;
    self->table.size = size;
    self->table.mode = MODE_PEER;
    Py_RETURN_TRUE;
}

METHOD(lane_serve_reads)
{
    int on;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "pK", &on, &size))
        return NULL;
    self->table.readable = on;
    if (on && self->table.mode == MODE_CLOSED)
        self->table.size = size;
    Py_RETURN_NONE;
}

METHOD(lane_close)
{
    (void)args;
    table_reset(&self->table);
    Py_RETURN_NONE;
}

/* --- a client's write, step by step ------------------------------------------------------------ */
METHOD(lane_begin)
{
    unsigned long long offset;
    unsigned length;
    double now;
    if (!PyArg_ParseTuple(args, "KId", &offset, &length, &now))
        return NULL;
    return PyLong_FromLong(table_begin(&self->table, offset, length, now));
}

static Slot *slot_of(Lane *self, PyObject *args, int *number)
{
    if (!PyArg_ParseTuple(args, "i", number))
        return NULL;
    if (*number < 0 || *number >= SLOTS || self->table.slots[*number].state == SLOT_FREE) {
        PyErr_Format(PyExc_ValueError, "no write is in slot %d", *number);
        return NULL;
    }
    return &self->table.slots[*number];
}

METHOD(lane_ident)
{
    int number;
    Slot *s = slot_of(self, args, &number);
    return s ? PyLong_FromUnsignedLongLong(s->ident) : NULL;
}

METHOD(lane_is_taken)
{
    int number;
    Slot *s = slot_of(self, args, &number);
    return s ? PyBool_FromLong(s->state == SLOT_TAKEN) : NULL;
}

METHOD(lane_local_done)
{
    int number, ok;
    if (!PyArg_ParseTuple(args, "ip", &number, &ok))
        return NULL;
    if (number < 0 || number >= SLOTS || self->table.slots[number].state != SLOT_BUSY)
        return PyErr_Format(PyExc_ValueError, "no write of the lane is in slot %d", number);
    return PyBool_FromLong(table_local_done(&self->table, number, ok));
}

METHOD(lane_acked)
{
    unsigned long long ident, offset;
    unsigned length;
    int in_sync = 0;
    if (!PyArg_ParseTuple(args, "KKI|p", &ident, &offset, &length, &in_sync))
        return NULL;
    int slot = table_find(&self->table, ident, offset, length);
    if (slot >= 0) {
        Waiter *waiter = self->table.slots[slot].waiter;
        table_acked(&self->table, slot, in_sync && self->table.bits.buf);
        if (waiter)
            waiter->acked = clock_seconds();
        if (table_complete(&self->table, slot) && waiter)
            wake(waiter);
    }
    return PyLong_FromLong(slot);
}

METHOD(lane_take)
{
    int number;
    Slot *s = slot_of(self, args, &number);
    if (!s)
        return NULL;
    if (s->state != SLOT_BUSY)
        return PyErr_Format(PyExc_ValueError, "slot %d is taken already", number);
    Slot was = *s;
    long epoch = table_take(&self->table, number);
    if (was.waiter)
        wake(was.waiter);
    return Py_BuildValue("lKIKdii", epoch, (unsigned long long)was.offset, was.length,
                         (unsigned long long)was.ident, was.sent_at, was.acked + was.in_sync, was.local);
}

METHOD(lane_release)
{
    int number;
    Slot *s = slot_of(self, args, &number);
    if (!s)
        return NULL;
    s->state = SLOT_FREE;
    self->table.used[number / 64] &= ~(1ull << (number % 64));
    Py_RETURN_NONE;
}

METHOD(lane_busy)
{
    (void)args;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < SLOTS; i++)
        if (self->table.slots[i].state == SLOT_BUSY) {
            PyObject *number = PyLong_FromLong(i);
            if (!number || PyList_Append(list, number))
                Py_CLEAR(list);
            Py_XDECREF(number);
        }
    return list;
}

/* --- epochs, extents, ranges ------------------------------------------------------------------- */
static int append_members(PyObject *list, const Epoch *e, long number)
{
    for (uint32_t i = 0; e && i < e->used; i++) {
        const Member *m = &e->members[i];
        if (!m->length)
            continue;
        PyObject *item = Py_BuildValue("lKIK", number, (unsigned long long)m->offset, m->length,
                                       (unsigned long long)m->ident);
        if (!item || PyList_Append(list, item)) {
            Py_XDECREF(item);
            return -1;
        }
        Py_DECREF(item);
    }
    return 0;
}

METHOD(lane_members)
{
    (void)args;
    PyObject *list = PyList_New(0);
    for (const Epoch *e = self->table.sent; list && e; e = e->next)
        if (append_members(list, e, (long)e->number))
            Py_CLEAR(list);
    if (list && append_members(list, self->table.current, EPOCH_CURRENT))
        Py_CLEAR(list);
    return list;
}

METHOD(lane_cut)
{
    unsigned number;
    if (!PyArg_ParseTuple(args, "I", &number))
        return NULL;
    return PyLong_FromUnsignedLong(table_cut(&self->table, number));
}

METHOD(lane_cut_own)
{
    uint32_t number;
    (void)args;
    if (!table_cut_own(&self->table, &number))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(number);
}

METHOD(lane_barrier_acked)
{
    unsigned number, count;
    if (!PyArg_ParseTuple(args, "II", &number, &count))
        return NULL;
    return PyBool_FromLong(table_barrier_acked(&self->table, number, count));
}

METHOD(lane_adopt)
{
    (void)args;
    PyObject *list = PyList_New(0);
    for (Epoch *e = self->table.sent; list && e; e = e->next) {
        if (!e->own)
            continue;
        PyObject *item = Py_BuildValue("Id", e->number, e->opened);
        if (!item || PyList_Append(list, item))
            Py_CLEAR(list);
        Py_XDECREF(item);
        e->own = 0;
    }
    return list;
}

METHOD(lane_set_epoch)
{
    unsigned number;
    if (!PyArg_ParseTuple(args, "I", &number))
        return NULL;
    self->table.number = number;
    Py_RETURN_NONE;
}

METHOD(lane_let_flush)
{
    int on;
    if (!PyArg_ParseTuple(args, "p", &on))
        return NULL;
    self->table.may_flush = on && self->table.mode == MODE_CLIENT;
    self->table.peer_may_flush = on && self->table.mode == MODE_PEER;
    Py_RETURN_NONE;
}

METHOD(lane_oldest)
{
    (void)args;
    const Epoch *e = self->table.sent;
    if (!e)
        Py_RETURN_NONE;
    return Py_BuildValue("III", e->number, e->count, e->unacked);
}

METHOD(lane_confirmed)
{
    (void)args;
    if (!self->table.sent)
        return PyErr_Format(PyExc_ValueError, "no epoch was ended");
    table_confirmed(&self->table);
    Py_RETURN_NONE;
}

METHOD(lane_heat)
{
    unsigned long long extent;
    int hot;
    if (!PyArg_ParseTuple(args, "Kp", &extent, &hot))
        return NULL;
    table_heat(&self->table, extent, hot);
    Py_RETURN_NONE;
}

METHOD(lane_referenced)
{
    unsigned long long extent;
    if (!PyArg_ParseTuple(args, "K", &extent))
        return NULL;
    return PyBool_FromLong(extent < self->table.extents && self->table.refs[extent]);
}

METHOD(lane_block)
{
    unsigned long long start, end;
    int on;
    if (!PyArg_ParseTuple(args, "KKp", &start, &end, &on))
        return NULL;
    (on ? table_block : table_unblock)(&self->table, start, end);
    Py_RETURN_NONE;
}

METHOD(lane_overlapping)
{
    unsigned long long start, end;
    if (!PyArg_ParseTuple(args, "KK", &start, &end))
        return NULL;
    return PyLong_FromLong(table_overlaps(&self->table, start, end));
}

METHOD(lane_next_sequence)
{
    (void)args;
    return PyLong_FromUnsignedLong(++self->table.sequence);
}

METHOD(lane_set_sequence)
{
    unsigned sequence;
    if (!PyArg_ParseTuple(args, "I", &sequence))
        return NULL;
    self->table.sequence = sequence;
    Py_RETURN_NONE;
}

/* --- the peer's write -------------------------------------------------------------------------- */
METHOD(lane_peer_begin)
{
    unsigned long long offset, ident;
    unsigned length;
    if (!PyArg_ParseTuple(args, "KIK", &offset, &length, &ident))
        return NULL;
    return PyBool_FromLong(table_peer_begin(&self->table, offset, length, ident) == 0);
}

METHOD(lane_peer_done)
{
    int ok;
    Table *t = &self->table;
    if (!PyArg_ParseTuple(args, "p", &ok))
        return NULL;
    return PyBool_FromLong(ok && table_peer_done(t));
}

METHOD(lane_peer_take)
{
    Table *t = &self->table;
    (void)args;
    if (!t->peer_busy || t->peer_taken)
        Py_RETURN_NONE;
    t->peer_taken = 1;
    return Py_BuildValue("KIK", (unsigned long long)t->peer_offset, t->peer_length,
                         (unsigned long long)t->peer_ident);
}

METHOD(lane_peer_over)
{
    (void)args;
    self->table.peer_busy = self->table.peer_taken = 0;
    Py_RETURN_NONE;
}

METHOD(lane_peer_count)
{
    (void)args;
    uint32_t count = self->table.peer_count;
    self->table.peer_count = 0;
    return PyLong_FromUnsignedLong(count);
}

METHOD(lane_peer_overlaps)
{
    unsigned long long start, end;
    const Table *t = &self->table;
    if (!PyArg_ParseTuple(args, "KK", &start, &end))
        return NULL;
    return PyBool_FromLong(t->peer_busy && !t->peer_taken && t->peer_offset < end &&
                           start < t->peer_offset + t->peer_length);
}

/* --- the resync -------------------------------------------------------------------------------- */
METHOD(lane_cleared)
{
    Table *t = &self->table;
    (void)args;
    if (!t->cleared)
        Py_RETURN_NONE;
    PyObject *list = PyList_New(0);
    for (uint64_t page = t->first_page; list && page < t->end_page; page++) {
        if (!t->page_cleared[page])
            continue;
        PyObject *number = PyLong_FromUnsignedLongLong(page);
        if (!number || PyList_Append(list, number))
            Py_CLEAR(list);
        Py_XDECREF(number);
    }
    if (!list)
        return NULL;
    for (uint64_t page = t->first_page; page < t->end_page; page++)
        t->page_cleared[page] = 0;
    PyObject *told = Py_BuildValue("KN", (unsigned long long)t->cleared, list);
    t->first_page = t->pages;
    t->end_page = t->cleared = 0;
    return told;
}

METHOD(lane_let_answer)
{
    int on;
    if (!PyArg_ParseTuple(args, "p", &on))
        return NULL;
    self->table.may_answer = on && self->table.mode == MODE_CLIENT;
    Py_RETURN_NONE;
}

METHOD(lane_answer_begin)
{
    unsigned long long offset;
    unsigned length;
    if (!PyArg_ParseTuple(args, "KI", &offset, &length))
        return NULL;
    return PyBool_FromLong(table_answer_begin(&self->table, offset, length));
}

METHOD(lane_answer_end)
{
    int ok, full;
    if (!PyArg_ParseTuple(args, "pp", &ok, &full))
        return NULL;
    return PyBool_FromLong(table_answer_end(&self->table, ok, full));
}

METHOD(lane_answers)
{
    Table *t = &self->table;
    (void)args;
    PyObject *list = PyList_New(t->answered);
    for (uint32_t i = 0; list && i < t->answered; i++) {
        const Answer *a = &t->answers[i];
        PyObject *item = Py_BuildValue("KIN", (unsigned long long)a->offset, a->length, PyBool_FromLong(a->full));
        if (item)
            PyList_SET_ITEM(list, i, item);
        else
            Py_CLEAR(list);
    }
    if (list)
        t->answered = 0;
    return list;
}

/* --- figures ----------------------------------------------------------------------------------- */
METHOD(lane_sums)
{
    Table *t = &self->table;
    (void)args;
    PyObject *sums = Py_BuildValue("KKKK", (unsigned long long)t->written, (unsigned long long)t->sent_bytes,
                                   (unsigned long long)t->received, (unsigned long long)t->read);
    t->written = t->sent_bytes = t->received = t->read = 0;
    return sums;
}

METHOD(lane_histogram)
{
    int stage;
    if (!PyArg_ParseTuple(args, "i", &stage))
        return NULL;
    if (stage < 0 || stage >= STAGES)
        return PyErr_Format(PyExc_ValueError, "no stage %d", stage);
    PyObject *list = PyList_New(BUCKETS);
    for (int i = 0; list && i < BUCKETS; i++)
        PyList_SET_ITEM(list, i, PyLong_FromUnsignedLongLong(self->table.histogram[stage][i]));
    return list;
}

METHOD(lane_nanoseconds)
{
    int stage;
    if (!PyArg_ParseTuple(args, "i", &stage))
        return NULL;
    if (stage < 0 || stage >= STAGES)
        return PyErr_Format(PyExc_ValueError, "no stage %d", stage);
    return PyLong_FromUnsignedLongLong(self->table.nanoseconds[stage]);
}

METHOD(lane_oldest_sent)
{
    const Table *t = &self->table;
    double oldest = 0;
    int found = 0;
    (void)args;
    for (int i = 0; i < SLOTS; i++) {
        const Slot *s = &t->slots[i];
        if (s->state == SLOT_BUSY && !s->acked && (!found || s->sent_at < oldest)) {
            oldest = s->sent_at;
            found = 1;
        }
    }
    for (const Epoch *e = t->sent; e; e = e->next)
        if (e->own && (!found || e->opened < oldest)) {
            oldest = e->opened;
            found = 1;
        }
    if (!found)
        Py_RETURN_NONE;
    return PyFloat_FromDouble(oldest);
}

NUMBER(get_mode) { (void)unused; return PyLong_FromLong(self->table.mode); }
NUMBER(get_logged) { (void)unused; return PyLong_FromUnsignedLong(self->table.logged); }
NUMBER(get_in_flight) { (void)unused; return PyLong_FromUnsignedLong(self->table.in_flight); }
NUMBER(get_bytes) { (void)unused; return PyLong_FromUnsignedLongLong(self->table.bytes_in_flight); }
NUMBER(get_syncing) { (void)unused; return PyBool_FromLong(self->table.bits.buf != NULL); }
NUMBER(get_epoch) { (void)unused; return PyLong_FromUnsignedLong(self->table.number); }
NUMBER(get_opened) { (void)unused; return PyFloat_FromDouble(self->table.opened); }
NUMBER(get_disk) { (void)unused; return PyBool_FromLong(self->table.backing != NULL); }
NUMBER(get_reads) { (void)unused; return PyBool_FromLong(self->table.readable); }
NUMBER(get_attached) { (void)unused; return PyBool_FromLong(self->ports[0] != NULL); }
NUMBER(get_current)
{
    (void)unused;
    return PyLong_FromUnsignedLong(self->table.current ? self->table.current->count : 0);
}

static PyGetSetDef lane_fields[] = {
    {"mode", (getter)get_mode, NULL, NULL, NULL},
    {"logged", (getter)get_logged, NULL, NULL, NULL},
    {"in_flight", (getter)get_in_flight, NULL, NULL, NULL},
    {"bytes_in_flight", (getter)get_bytes, NULL, NULL, NULL},
    {"syncing", (getter)get_syncing, NULL, NULL, NULL},
    {"epoch", (getter)get_epoch, NULL, NULL, NULL},
    {"opened", (getter)get_opened, NULL, NULL, NULL},
    {"current_count", (getter)get_current, NULL, NULL, NULL},
    {"has_disk", (getter)get_disk, NULL, NULL, NULL},
    {"serves_reads", (getter)get_reads, NULL, NULL, NULL},
    {"attached", (getter)get_attached, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define ENTRY(name) {#name, (PyCFunction)lane_##name, METH_VARARGS, NULL}
static PyMethodDef lane_methods[] = {
    ENTRY(attach), ENTRY(detach), ENTRY(set_disk), ENTRY(call_data), ENTRY(heard), ENTRY(open_client),
    ENTRY(open_peer), ENTRY(serve_reads), ENTRY(close), ENTRY(begin), ENTRY(ident), ENTRY(is_taken),
    ENTRY(local_done), ENTRY(acked), ENTRY(take), ENTRY(release), ENTRY(busy), ENTRY(members), ENTRY(cut),
    ENTRY(oldest), ENTRY(confirmed), ENTRY(heat), ENTRY(referenced), ENTRY(block), ENTRY(overlapping),
    ENTRY(next_sequence), ENTRY(set_sequence), ENTRY(peer_begin), ENTRY(peer_done), ENTRY(peer_take),
    ENTRY(peer_over), ENTRY(peer_count), ENTRY(sums), ENTRY(histogram), ENTRY(nanoseconds), ENTRY(oldest_sent),
    ENTRY(cut_own), ENTRY(barrier_acked), ENTRY(adopt), ENTRY(set_epoch), ENTRY(let_flush), ENTRY(flush),
    ENTRY(peer_overlaps), ENTRY(cleared), ENTRY(let_answer), ENTRY(answer_begin), ENTRY(answer_end), ENTRY(answers),
    ENTRY(write), ENTRY(read), ENTRY(receive), ENTRY(serve),
    {NULL, NULL, 0, NULL},
};

PyTypeObject LaneType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pydrbd.hotpath._native.Lane",
    .tp_basicsize = sizeof(Lane),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "The writes of a healthy pair: Lane(mutex, volume).",
    .tp_new = lane_new,
    .tp_dealloc = (destructor)lane_dealloc,
    .tp_methods = lane_methods,
    .tp_getset = lane_fields,
};

/* --- the module -------------------------------------------------------------------------------- */
static PyMethodDef functions[] = {
    {"write_all", native_write_all, METH_VARARGS, "write_all(fd, data, offset): all of it, or OSError."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void)
{
    PyTypeObject *types[] = {&MutexType, &OutletType, &FlusherType, &LaneType};
    const char *names[] = {"Mutex", "Outlet", "Flusher", "Lane"};
    PyObject *made = PyModule_Create(&module);
    for (int i = 0; made && i < 4; i++)
        if (PyType_Ready(types[i]) < 0 || PyModule_AddObjectRef(made, names[i], (PyObject *)types[i]) < 0)
            Py_CLEAR(made);
    return made;
}
