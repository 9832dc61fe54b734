/* The loader of libraries that are there or not. Each library has its own lock, which is held while it is loaded. */
#include "base/dynamic_library.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct tb_library_table {
    struct tb_library_table *next;
    char *path;
    max_align_t table[];
};

bool tb_library_find(void *opened, const char *name, void *function) {
    /* Function pointers come out of dlsym as objects, which C cannot cast. */
    void *found = dlsym(opened, name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static int32_t fill(const tb_library *library, struct tb_library_table *one, tb_error *err) {
    if (library->before != NULL) {
        library->before();
    }
    void *opened = dlopen(one->path, RTLD_NOW | RTLD_LOCAL);
    const char *why = opened == NULL ? dlerror() : NULL;
    if (library->after != NULL) {
        library->after();
    }
    if (opened == NULL) {
        return tb_fail(err, TB_ELIBRARY, -1, 0, "%s does not load: %s", library->what, why == NULL ? one->path : why);
    }
    int32_t code = library->find(one->table, one->path, opened, err);
    if (code != TB_OK) {
        dlclose(opened);
        return code;
    }
    return library->start == NULL ? TB_OK : library->start(one->table, err);
}

static int32_t load_once(tb_library *library, const char *path, const void **table, tb_error *err) {
    for (struct tb_library_table *one = library->tables; one != NULL; one = one->next) {
        if (strcmp(one->path, path) == 0) {
            *table = one->table;
            return TB_OK;
        }
    }
    struct tb_library_table *one = calloc(1, sizeof *one + library->table_bytes);
    char *copy = strdup(path);
    if (one == NULL || copy == NULL) {
        free(copy);
        free(one);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for the functions of %.200s", path);
    }
    one->path = copy;
    int32_t code = fill(library, one, err);
    if (code != TB_OK) {
        free(copy);
        free(one);
        return code;
    }
    one->next = library->tables;
    library->tables = one;
    *table = one->table;
    return TB_OK;
}

int32_t tb_library_load(tb_library *library, const char *path, const void **table, tb_error *err) {
    const char *named = getenv(library->variable);
    if (path == NULL || path[0] == '\0') {
        path = named != NULL && named[0] != '\0' ? named : library->file;
    }
    pthread_mutex_lock(&library->lock);
    int32_t code = load_once(library, path, table, err);
    pthread_mutex_unlock(&library->lock);
    return code;
}
