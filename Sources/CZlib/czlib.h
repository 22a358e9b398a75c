#ifndef CZLIB_H
#define CZLIB_H

#include <zlib.h>

/* `inflateInit2` is a macro, which Swift does not import. 15 + 16: a gzip header, the largest window. */
static inline int czlib_inflate_init_gzip(z_stream *stream) { return inflateInit2(stream, 15 + 16); }

/* `deflateInit2`, likewise, for a gzip stream. */
static inline int czlib_deflate_init_gzip(z_stream *stream) {
    return deflateInit2(stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
}

#endif
