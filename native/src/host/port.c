/* Ports: what threads of the bus have to say, gathered for an event loop. Each has its own lock. */
#include "host/port.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/handle.h"
#include "base/error.h"

typedef struct tb_port {
    pthread_mutex_t mutex;
    tb_source *first;
    tb_source *last;
    uint32_t sources;
    int write_fd;
} tb_port;

static void destroy_port(void *object) {
    tb_port *port = object;
    close(port->write_fd);
    pthread_mutex_destroy(&port->mutex);
    free(port);
}

int32_t tb_port_open(uint64_t *handle, int32_t *fd, tb_error *err) {
    tb_port *port = calloc(1, sizeof *port);
    if (port == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a port");
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        int32_t rc = tb_fail(err, TB_ESYSTEM, -1, errno, "a pipe cannot be made");
        free(port);
        return rc;
    }
    pthread_mutex_init(&port->mutex, NULL);
    port->write_fd = ends[1];
    int32_t rc = tb_handle_add(TB_HANDLE_PORT, port, destroy_port, handle, err);
    if (rc != TB_OK) {
        close(ends[0]);
        destroy_port(port);
        return rc;
    }
    *fd = ends[0];
    return TB_OK;
}

int32_t tb_port_next(uint64_t handle, uint64_t *token, uint32_t *found, tb_error *err) {
    tb_port *port = tb_handle_get(TB_HANDLE_PORT, handle, err);
    if (port == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&port->mutex);
    tb_source *source = port->first;
    if (source != NULL) {
        port->first = source->next;
        port->last = port->first == NULL ? NULL : port->last;
        source->next = NULL;
        source->raised = false;
        *token = source->token;
    }
    pthread_mutex_unlock(&port->mutex);
    *found = source != NULL;
    tb_handle_put(handle);
    return TB_OK;
}

int32_t tb_port_close(uint64_t handle, tb_error *err) {
    tb_port *port = tb_handle_get(TB_HANDLE_PORT, handle, err);
    if (port == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&port->mutex);
    uint32_t sources = port->sources;
    pthread_mutex_unlock(&port->mutex);
    int32_t rc = sources == 0 ? tb_handle_close(TB_HANDLE_PORT, handle, err)
                              : tb_fail(err, TB_EBUSY, -1, 0, "%u threads still report to the port", sources);
    tb_handle_put(handle);
    return rc;
}

int32_t tb_source_attach(tb_source *source, uint64_t handle, uint64_t token, tb_error *err) {
    tb_port *port = tb_handle_get(TB_HANDLE_PORT, handle, err);
    if (port == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&port->mutex);
    port->sources++;
    pthread_mutex_unlock(&port->mutex);
    /* The use of the handle lasts until the source is detached: the port cannot go before it. */
    *source = (tb_source){.port = port, .port_handle = handle, .token = token};
    return TB_OK;
}

void tb_source_detach(tb_source *source) {
    tb_port *port = source->port;
    pthread_mutex_lock(&port->mutex);
    tb_source *before = NULL;
    for (tb_source *at = port->first; at != NULL; before = at, at = at->next) {
        if (at != source) {
            continue;
        }
        if (before == NULL) {
            port->first = at->next;
        } else {
            before->next = at->next;
        }
        if (port->last == at) {
            port->last = before;
        }
        break;
    }
    port->sources--;
    pthread_mutex_unlock(&port->mutex);
    tb_handle_put(source->port_handle);
}

void tb_source_raise(tb_source *source) {
    tb_port *port = source->port;
    pthread_mutex_lock(&port->mutex);
    bool was_empty = port->first == NULL;
    if (!source->raised) {
        source->raised = true;
        if (was_empty) {
            port->first = source;
        } else {
            port->last->next = source;
        }
        port->last = source;
    }
    pthread_mutex_unlock(&port->mutex);
    /* A full pipe is readable anyway, and with its reader gone nobody is left to tell. */
    if (was_empty) {
        ssize_t written;
        do {
            written = write(port->write_fd, "", 1);
        } while (written < 0 && errno == EINTR);
    }
}
