/*
 * A session's book: a sealed file without a name, in which the session answers its peers' challenges and says where
 * its private memory lies. A target opens it through /proc, by the process and the descriptor that the source names.
 * The kernel lets only those do that who may look into the process anyway, so that addresses leave it no other way.
 * And since the target finds there what it had asked the source for, over their connection and at random, the process
 * is the one that it talks to, whatever a peer says: a peer could name any other process of this user, or this one.
 */
#ifndef TB_BOOK_H
#define TB_BOOK_H

#include "wire/wire.h"

typedef struct tb_book tb_book;

int32_t tb_book_create(int32_t world, tb_book **book, tb_error *err);
/* NULL: does nothing. */
void tb_book_free(tb_book *book);
int tb_book_file(const tb_book *book);
/* Source: what `target` has asked for, and where a region lies; false if the book has no room for it. */
void tb_book_answer(tb_book *book, int32_t source, int32_t target, const uint8_t nonce[16]);
bool tb_book_note(tb_book *book, uint32_t region, uint64_t address);

/*
 * Target: opens the book that a source names, and finds our nonce in it. TB_EAUTH if it is another's, TB_EUNSUPPORTED
 * if this system does not let us look.
 */
int32_t tb_book_open(const tb_wire_identity *source, int32_t rank, int32_t world, int32_t own,
                     const uint8_t nonce[16], int *fd, tb_error *err);
/* The place of its region in its own memory, as the source says; 0 if it does not. */
uint64_t tb_book_look(int fd, int32_t world, uint32_t region);

/*
 * A file that another process of this user has open, for reading: a regular one, or nothing. What a peer names could
 * be a device or a pipe, which must not even be opened. Returns 0 or an errno.
 */
int tb_file_of(int32_t pid, int32_t descriptor, int *fd);

#endif
