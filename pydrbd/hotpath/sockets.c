/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mutex of the driver, and the outlet of a socket, as Python types.
 *
 * Both locks are the system's, so that threads without the interpreter's lock can take them. Python's
 * methods let go of the interpreter's lock before they wait.
 */
#include "hot.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* --- Mutex ------------------------------------------------------------------------------------- */
static PyObject *mutex_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Mutex *self = (Mutex *)type->tp_alloc(type, 0);
    (void)args;
    (void)kwargs;
    if (self)
        pthread_mutex_init(&self->lock, NULL);
    return (PyObject *)self;
}

static void lock_politely(pthread_mutex_t *lock)
{
    if (pthread_mutex_trylock(lock) == 0)
        return;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(lock);
    Py_END_ALLOW_THREADS
}

static PyObject *mutex_acquire(Mutex *self, PyObject *unused)
{
    (void)unused;
    lock_politely(&self->lock);
    Py_RETURN_TRUE;
}

static PyObject *mutex_release(Mutex *self, PyObject *unused)
{
    (void)unused;
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *mutex_enter(Mutex *self, PyObject *unused)
{
    (void)unused;
    lock_politely(&self->lock);
    Py_INCREF(self);
    return (PyObject *)self;
}

static PyObject *mutex_exit(Mutex *self, PyObject *args)
{
    (void)args;
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyMethodDef mutex_methods[] = {
    {"acquire", (PyCFunction)mutex_acquire, METH_NOARGS, "Take it; other threads of Python go on meanwhile."},
    {"release", (PyCFunction)mutex_release, METH_NOARGS, "Give it back."},
    {"__enter__", (PyCFunction)mutex_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)mutex_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject MutexType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pydrbd.hotpath._native.Mutex",
    .tp_basicsize = sizeof(Mutex),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A lock that compiled threads can take as well.",
    .tp_new = mutex_new,
    .tp_methods = mutex_methods,
};

/* --- Outlet ------------------------------------------------------------------------------------ */
static PyObject *outlet_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int fd;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Outlet *self = (Outlet *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (!(self->port = calloc(1, sizeof(Port)))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->port->users = 1;
    self->port->fd = fd;
    pthread_mutex_init(&self->port->lock, NULL);
    return (PyObject *)self;
}

void port_leave(Port *port)
{
    if (port && --port->users == 0) {
        free(port->spill);
        free(port);
    }
}

int port_reader(Port *port, int by)
{
    pthread_mutex_lock(&port->lock);
    int open = port->fd >= 0;
    if (open || by < 0)
        port->readers += by;
    pthread_mutex_unlock(&port->lock);
    return open;
}

static void outlet_dealloc(Outlet *self)
{
    port_leave(self->port);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int keep_spill(Port *port, struct iovec *parts, size_t sent)
{
    size_t total = parts[0].iov_len + parts[1].iov_len, left = total - sent;
    unsigned char *rest = malloc(left), *to = rest;
    if (!rest) {
        port->failed = ENOMEM; /* half a packet is out: this connection is over */
        return 1;
    }
    for (int i = 0; i < 2; i++) {
        size_t skip = sent < parts[i].iov_len ? sent : parts[i].iov_len;
        memcpy(to, (char *)parts[i].iov_base + skip, parts[i].iov_len - skip);
        to += parts[i].iov_len - skip;
        sent -= skip;
    }
    port->spill = rest;
    port->spill_size = left;
    port->backlog++;
    return 1;
}

int port_send(Port *port, const void *head, size_t head_size, const void *body, size_t body_size)
{
    struct iovec parts[2] = {{(void *)head, head_size}, {(void *)body, body_size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = body_size ? 2 : 1};
    if (port->fd < 0 || port->failed)
        return 1;
    ssize_t sent = sendmsg(port->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == (ssize_t)(head_size + body_size))
        return 0;
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        port->failed = errno;
        return 1;
    }
    return keep_spill(port, parts, sent < 0 ? 0 : (size_t)sent);
}

int port_drain(Port *port)
{
    if (!port->spill)
        return 0;
    if (port->fd < 0 || port->failed)
        return 1;
    ssize_t sent = send(port->fd, port->spill, port->spill_size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        port->failed = errno;
        return 1;
    }
    if (sent <= 0)
        return 1;
    port->taken += (uint64_t)sent;
    port->spill_size -= (size_t)sent;
    if (port->spill_size) {
        memmove(port->spill, port->spill + sent, port->spill_size);
        return 1;
    }
    free(port->spill);
    port->spill = NULL;
    port->backlog--;
    return 0;
}

void port_append(Port *port, const void *bytes, size_t size)
{
    unsigned char *more = realloc(port->spill, port->spill_size + size);
    if (!more) {
        port->failed = ENOMEM;
        return;
    }
    memcpy(more + port->spill_size, bytes, size);
    if (!port->spill)
        port->backlog++;
    port->spill = more;
    port->spill_size += size;
}

static PyObject *outlet_add(Outlet *self, PyObject *count)
{
    long n = PyLong_AsLong(count);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    self->port->backlog += n;
    Py_RETURN_NONE;
}

static PyObject *outlet_acquire(Outlet *self, PyObject *unused)
{
    (void)unused;
    lock_politely(&self->port->lock);
    Py_RETURN_NONE;
}

static PyObject *outlet_release(Outlet *self, PyObject *unused)
{
    (void)unused;
    pthread_mutex_unlock(&self->port->lock);
    Py_RETURN_NONE;
}

static PyObject *outlet_take_spill(Outlet *self, PyObject *unused)
{
    (void)unused;
    if (!self->port->spill)
        Py_RETURN_NONE;
    PyObject *bytes = PyBytes_FromStringAndSize((char *)self->port->spill, (Py_ssize_t)self->port->spill_size);
    if (bytes) {
        free(self->port->spill);
        self->port->spill = NULL;
        self->port->spill_size = 0;
    }
    return bytes;
}

static PyObject *outlet_close(Outlet *self, PyObject *unused)
{
    Port *port = self->port;
    int readers;
    (void)unused;
    port->fd = -1;
    /* Whoever reads has been called, or will be back in a few milliseconds. */
    while ((readers = port->readers)) {
        pthread_mutex_unlock(&port->lock);
        Py_BEGIN_ALLOW_THREADS
        usleep(200);
        Py_END_ALLOW_THREADS
        lock_politely(&port->lock);
    }
    Py_RETURN_NONE;
}

static PyObject *outlet_backlog(Outlet *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(self->port->backlog);
}

static PyObject *outlet_failed(Outlet *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(self->port->failed);
}

static PyObject *outlet_taken(Outlet *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->port->taken);
}

static PyObject *outlet_get_half(Outlet *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->port->half);
}

static int outlet_set_half(Outlet *self, PyObject *value, void *unused)
{
    (void)unused;
    self->port->half = value && PyObject_IsTrue(value) == 1;
    return 0;
}

static PyObject *outlet_spilled(Outlet *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->port->spill != NULL);
}

static PyMethodDef outlet_methods[] = {
    {"add", (PyCFunction)outlet_add, METH_O,
     "Python has queued so many packets (under the mutex), or has sent them (negative, with the lock)."},
    {"acquire", (PyCFunction)outlet_acquire, METH_NOARGS, "Take the lock of sending."},
    {"release", (PyCFunction)outlet_release, METH_NOARGS, "Give it back."},
    {"take_spill", (PyCFunction)outlet_take_spill, METH_NOARGS,
     "With the lock: the bytes that have to be sent before anything else, or None; they count as one packet."},
    {"close", (PyCFunction)outlet_close, METH_NOARGS, "With the lock: send no more."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef outlet_fields[] = {
    {"backlog", (getter)outlet_backlog, NULL, "Packets queued by Python and not yet sent.", NULL},
    {"failed", (getter)outlet_failed, NULL, "The errno of a send that failed, or 0.", NULL},
    {"half", (getter)outlet_get_half, (setter)outlet_set_half,
     "Python has sent a part of a packet (with the lock).", NULL},
    {"taken", (getter)outlet_taken, NULL, "Bytes of spills that the kernel has taken from the lane itself.", NULL},
    {"spilled", (getter)outlet_spilled, NULL, "Are there bytes that have to be sent first?", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject OutletType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pydrbd.hotpath._native.Outlet",
    .tp_basicsize = sizeof(Outlet),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Where the packets of one socket leave: Outlet(fd).",
    .tp_new = outlet_new,
    .tp_dealloc = (destructor)outlet_dealloc,
    .tp_methods = outlet_methods,
    .tp_getset = outlet_fields,
};
