// simdjson's DOM parser behind C linkage: bytes go in, a tape and a string buffer come out, and Swift walks both
// without calling back. Used by `JSONText.JSONParser` only. Tape format: simdjson, `doc/tape.md`.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Reading this many bytes behind the text must be allowed when a caller says that its text is padded.
#define CSIMDJSON_PADDING 64

/// Payload bit of a double's tape word: the number is grammatical, but too large for a double.
#define CSIMDJSON_HUGE_NUMBER 1

typedef enum csimdjson_result {
    CSIMDJSON_OK = 0,
    CSIMDJSON_NOT_JSON = 1,
    CSIMDJSON_TOO_DEEP = 2,
    CSIMDJSON_OUT_OF_MEMORY = 3,
} csimdjson_result;

typedef struct csimdjson_parser csimdjson_parser;

/// The parsed document. Valid until the next parse, trim or destroy of the same parser; owned by the parser.
typedef struct csimdjson_document {
    const uint64_t *tape;
    const uint8_t *strings;
} csimdjson_document;

/// Null when there is no memory. One thread at a time may use a parser.
csimdjson_parser *csimdjson_parser_create(void);
void csimdjson_parser_destroy(csimdjson_parser *parser);

/// Parses one JSON text of `length` bytes with at most `max_depth` levels of arrays and objects.
/// `is_padded`: CSIMDJSON_PADDING bytes after the text are readable; otherwise the text is copied first.
csimdjson_result csimdjson_parse(csimdjson_parser *parser, const uint8_t *bytes, size_t length, size_t max_depth,
                                 bool is_padded, csimdjson_document *document);

/// Gives back what large documents made the parser keep. The last document is gone afterwards.
void csimdjson_parser_trim(csimdjson_parser *parser);

/// Bytes the parser keeps allocated, within a few per cent.
size_t csimdjson_parser_retained_bytes(const csimdjson_parser *parser);

static inline bool csimdjson_bytes_equal(const uint8_t *a, const uint8_t *b, size_t count) {
    return memcmp(a, b, count) == 0;
}

#ifdef __cplusplus
}
#endif
