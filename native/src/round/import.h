/* What a target knows of a source's memory. The session's lock is held unless a comment says otherwise. */
#ifndef TB_IMPORT_H
#define TB_IMPORT_H

#include "round/transfer.h"

enum tb_import_state {
    TB_IMPORT_COMING,  /* parts of it are to come */
    TB_IMPORT_WAITING, /* for a thread */
    TB_IMPORT_OPENING, /* a thread has it */
    TB_IMPORT_OPEN,
};

struct tb_import {
    tb_import *next; /* that wait for a thread */
    tb_session *session;
    tb_exchange *exchange; /* NULL if it is not wanted any more */
    const struct tb_carrier *carrier;
    enum tb_import_state state;
    int32_t rank; /* the source, its number of the transfer, and its process */
    uint64_t remote;
    tb_wire_identity identity;
    uint8_t nonce[16]; /* that we have asked it to place in its book */
    uint8_t *bytes; /* as exported */
    uint64_t byte_count, got, limit;
    const tb_wire_region *regions;
    const tb_wire_end *ends;
    const int64_t *words;
    const uint8_t *blobs; /* the blobs of the regions, one after another */
    const uint8_t *session_blob;
    uint32_t region_count, end_count, blob_bytes, session_bytes;
    uint64_t word_count;
    uint32_t first_chunk[TB_STAGES]; /* the first chunk of the channel in the target's program */
    uint32_t first_end[TB_STAGES];   /* and the end of that chunk */
    void *opened;                    /* the carrier's own */
};

/* What the carrier of the source has said of a region; import.c has checked that it lies within the export. */
static inline const void *tb_import_blob(const tb_import *import, uint32_t region) {
    return import->blobs + import->regions[region].blob_at;
}

/* The source end of a chunk of a channel that is pulled. */
static inline const tb_wire_end *tb_import_end(const tb_import *import, uint8_t stage, uint32_t chunk) {
    return &import->ends[import->first_end[stage] + (chunk - import->first_chunk[stage])];
}

/* What is to come of a peer; NULL if there is no memory. */
tb_import *tb_import_create(tb_exchange *exchange);
int32_t tb_import_take(tb_import *import, const uint8_t *part, uint64_t bytes, tb_error *err);
/* Checks and opens the next one that waits: in a thread. False if there is none. */
bool tb_import_serve(tb_session *session);
/* Nobody wants it any more. It goes at once, or once the thread that has it is done. */
void tb_import_drop(tb_import *import);
/* Frees it. Without the lock. */
void tb_import_free(tb_import *import);

#endif
