/* Libraries that are there or not: a table of functions for each path, loaded at the first use and kept for good. */
#ifndef TB_DYNAMIC_LIBRARY_H
#define TB_DYNAMIC_LIBRARY_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensorbus.h"

typedef struct tb_library {
    const char *what;     /* "the CUDA driver": what does not load, in messages */
    const char *variable; /* the variable of the environment that may name the file */
    const char *file;     /* if nothing else names one */
    size_t table_bytes;
    /* Fills the table from what was opened. If it fails, the library is closed again. */
    int32_t (*find)(void *table, const char *path, void *opened, tb_error *err);
    /* Around the loading, for what a library does to the process as it is loaded. Both may be NULL. */
    void (*before)(void);
    void (*after)(void);
    /* May be NULL. Is called after find; if it fails, the library stays open: it may have begun to run. */
    int32_t (*start)(void *table, tb_error *err);
    pthread_mutex_t lock;
    struct tb_library_table *tables; /* behind the lock */
} tb_library;

/* The table of path, or, if that is NULL or empty, of the file that the environment names, or of the usual one. */
int32_t tb_library_load(tb_library *library, const char *path, const void **table, tb_error *err);
/* Puts a function of an opened library into a pointer to it. False if it has none of that name. */
bool tb_library_find(void *opened, const char *name, void *function);

#endif
