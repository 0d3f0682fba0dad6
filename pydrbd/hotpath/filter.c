/* SPDX-License-Identifier: GPL-2.0-or-later */
/* nbdkit's filter before the Python plugin: a request that the lane can serve does not enter the interpreter.
 *
 * It is loaded by nbdkit (--filter), the lane by the plugin; they find each other in the one process by the file
 * that the parameter pydrbd-hot names. Everything else passes through. A write that Python has to go on
 * with is handed to the plugin on the same thread, where lane_write finds what has been done already.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static char *library;
static int (*hot_write)(const void *, uint32_t, uint64_t);
static int (*hot_read)(void *, uint32_t, uint64_t);
static int (*hot_flush)(void);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int config(nbdkit_next_config *next, nbdkit_backend *data, const char *key, const char *value)
{
    if (strcmp(key, "pydrbd-hot"))
        return next(data, key, value);
    free(library);
    library = nbdkit_realpath(value);
    return library ? 0 : -1;
}

static void look_up(void)
{
    /* The plugin has loaded it, or there is no lane in this process. */
    void *handle = library ? dlopen(library, RTLD_NOW | RTLD_NOLOAD) : NULL;
    if (handle) {
        hot_write = (int (*)(const void *, uint32_t, uint64_t))dlsym(handle, "pydrbd_hot_write");
        hot_read = (int (*)(void *, uint32_t, uint64_t))dlsym(handle, "pydrbd_hot_read");
        hot_flush = (int (*)(void))dlsym(handle, "pydrbd_hot_flush");
    }
}

static int prepare(nbdkit_next *next, void *handle, int readonly)
{
    (void)next;
    (void)handle;
    (void)readonly;
    pthread_once(&once, look_up);
    return 0;
}

static int hot_pread(nbdkit_next *next, void *handle, void *into, uint32_t count, uint64_t offset, uint32_t flags,
                     int *error)
{
    (void)handle;
    if (hot_read && !flags && hot_read(into, count, offset))
        return 0;
    return next->pread(next, into, count, offset, flags, error);
}

static int hot_pwrite(nbdkit_next *next, void *handle, const void *from, uint32_t count, uint64_t offset,
                      uint32_t flags, int *error)
{
    (void)handle;
    if (hot_write && !(flags & ~NBDKIT_FLAG_FUA) && hot_write(from, count, offset)) {
        if (!(flags & NBDKIT_FLAG_FUA) || hot_flush())
            return 0;
        return next->flush(next, 0, error);
    }
    return next->pwrite(next, from, count, offset, flags, error);
}

static int hot_sync(nbdkit_next *next, void *handle, uint32_t flags, int *error)
{
    (void)handle;
    if (hot_flush && !flags && hot_flush())
        return 0;
    return next->flush(next, flags, error);
}

static void unload(void) { free(library); }

static struct nbdkit_filter filter = {
    .name = "pydrbd-hot",
    .longname = "pydrbd's hot path",
    .unload = unload,
    .config = config,
    .config_help = "pydrbd-hot=FILE  the compiled module that the plugin loads",
    .prepare = prepare,
    .pread = hot_pread,
    .pwrite = hot_pwrite,
    .flush = hot_sync,
};

NBDKIT_REGISTER_FILTER(filter)
