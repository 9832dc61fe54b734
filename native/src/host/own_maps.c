/* Reads /proc/self/maps. No lock is needed: each caller has a list of its own. */
#include "host/own_maps.h"

#include <inttypes.h>
#include <string.h>
#include <sys/sysmacros.h>

FILE *tb_own_maps_open(void) {
    return fopen("/proc/self/maps", "re");
}

bool tb_own_maps_next(FILE *maps, tb_own_map *map) {
    while (fgets(map->line, sizeof map->line, maps) != NULL) {
        static const char form[] = "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n";
        uint64_t begin, end, offset, inode;
        unsigned major_id, minor_id;
        char mode[5];
        int name = 0;
        int fields = sscanf(map->line, form, &begin, &end, mode, &offset, &major_id, &minor_id, &inode, &name);
        if (fields != 7 || offset != 0 || mode[3] != 's') {
            continue;
        }
        map->line[strcspn(map->line, "\n")] = '\0';
        map->begin = (uintptr_t)begin;
        map->end = (uintptr_t)end;
        map->writable = mode[1] == 'w';
        map->device = makedev(major_id, minor_id);
        map->inode = (ino_t)inode;
        map->name = map->line + name;
        return true;
    }
    return false;
}
