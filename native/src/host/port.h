/* The place where the threads of the bus report: a list of raised tokens, and a pipe that says that it is not empty. */
#ifndef TB_BUS_PORT_H
#define TB_BUS_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include "tensorbus.h"

typedef struct tb_source {
    struct tb_port *port;
    struct tb_source *next;
    uint64_t port_handle;
    uint64_t token;
    bool raised;
} tb_source;

/* Binds a source to a port, which then refuses to close until tb_source_detach. */
int32_t tb_source_attach(tb_source *source, uint64_t port, uint64_t token, tb_error *err);
void tb_source_detach(tb_source *source);
/* From any thread; never blocks. */
void tb_source_raise(tb_source *source);

#endif
