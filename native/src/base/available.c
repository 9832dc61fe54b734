/* How much memory this process can take: what /proc and its control groups tell. No lock is needed. */
#include "base/available.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

/*
 * The number behind a key of a file of lines "key number"; a key of NULL means the first number of the file.
 */
static bool read_number(const char *path, const char *key, uint64_t *number) {
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    char line[256];
    bool found = false;
    size_t length = key == NULL ? 0 : strlen(key);
    while (!found && fgets(line, sizeof line, file) != NULL) {
        found = (key == NULL || strncmp(line, key, length) == 0)
                && sscanf(line + length, " %" SCNu64, number) == 1;
    }
    fclose(file);
    return found;
}

static bool read_in_group(const char *group, const char *name, const char *key, uint64_t *number) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", group, name);
    return read_number(path, key, number);
}

/* What one version of control groups calls its numbers. */
typedef struct group_files {
    const char *mount;
    const char *limit;
    const char *usage;
    const char *cache;
} group_files;

static const group_files version_1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                      "memory.usage_in_bytes", "total_inactive_file"};
static const group_files version_2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

/* Usage counts the page cache, of which the inactive part is given back before anything is refused. */
static uint64_t left_in_group(const group_files *files, const char *group) {
    uint64_t limit;
    uint64_t usage;
    uint64_t cache = 0;
    if (!read_in_group(group, files->limit, NULL, &limit)
        || !read_in_group(group, files->usage, NULL, &usage)) {
        return UINT64_MAX; /* "max", or no such group as seen from here */
    }
    (void)read_in_group(group, "memory.stat", files->cache, &cache);
    usage = usage > cache ? usage - cache : 0;
    return limit > usage ? limit - usage : 0;
}

/* A limit may stand on the group itself or on any above it. */
static uint64_t left_up_from(const group_files *files, const char *path) {
    char group[PATH_BYTES];
    uint64_t least = UINT64_MAX;
    size_t mount = strlen(files->mount);
    snprintf(group, sizeof group, "%s%s", files->mount, strcmp(path, "/") == 0 ? "" : path);
    for (;;) {
        uint64_t left = left_in_group(files, group);
        least = left < least ? left : least;
        char *slash = strrchr(group, '/');
        if (strlen(group) <= mount || slash == NULL) {
            return least;
        }
        *slash = '\0';
    }
}

static uint64_t left_in_groups(void) {
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL) {
        return UINT64_MAX;
    }
    char line[PATH_BYTES - 64];
    uint64_t least = UINT64_MAX;
    while (fgets(line, sizeof line, file) != NULL) {
        /* number:controllers:path, where version 2 has the number 0 and no controllers */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (path == NULL) {
            continue;
        }
        *path++ = '\0';
        const group_files *files = controllers[1] == '\0' ? &version_2 : &version_1;
        if (files == &version_2 || strcmp(controllers + 1, "memory") == 0) {
            uint64_t left = left_up_from(files, path);
            least = left < least ? left : least;
        }
    }
    fclose(file);
    return least;
}

uint64_t tb_memory_available(void) {
    uint64_t kib;
    uint64_t swap_kib = 0;
    uint64_t machine = UINT64_MAX;
    if (read_number("/proc/meminfo", "MemAvailable:", &kib)) {
        (void)read_number("/proc/meminfo", "SwapFree:", &swap_kib);
        machine = (kib + swap_kib) * 1024;
    }
    uint64_t groups = left_in_groups();
    return groups < machine ? groups : machine;
}
