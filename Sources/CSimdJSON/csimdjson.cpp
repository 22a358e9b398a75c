// Implementation of csimdjson.h over simdjson's DOM API, with the rulings simdjson does not know:
// a byte order mark is refused, empty containers count as a level, and numbers beyond 64 bits or a double are legal.

#include "csimdjson.h"

#include <simdjson.h>

#include <clocale>
#include <cmath>
#include <cstdlib>
#include <locale.h>
#include <memory>
#include <new>
#include <vector>

using namespace simdjson;

namespace {

// A parser keeps buffers for documents up to this size for ever (14 bytes of buffers per byte of text). Larger ones
// are given back as soon as a document arrives that needs less than a quarter of them.
constexpr size_t retained_capacity = 256 * 1024;
constexpr size_t smallest_capacity = 4 * 1024;

bool is_digit(uint8_t c) { return c >= '0' && c <= '9'; }

bool ends_token(uint8_t c) {
    switch (c) {
    case ' ': case '\t': case '\n': case '\r': case ',': case ':': case '[': case ']': case '{': case '}':
    case '"': return true;
    default: return false;
    }
}

/// RFC 8259 §6.
bool is_json_number(const uint8_t *p, const uint8_t *end, bool &is_integer) {
    is_integer = true;
    if (p < end && *p == '-') { p++; }
    if (p == end || !is_digit(*p)) { return false; }
    if (*p == '0') { p++; } else { while (p < end && is_digit(*p)) { p++; } }
    if (p < end && *p == '.') {
        is_integer = false;
        if (++p == end || !is_digit(*p)) { return false; }
        while (p < end && is_digit(*p)) { p++; }
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        is_integer = false;
        p++;
        if (p < end && (*p == '+' || *p == '-')) { p++; }
        if (p == end || !is_digit(*p)) { return false; }
        while (p < end && is_digit(*p)) { p++; }
    }
    return p == end;
}

/// True when simdjson has a tape form for this integer: within int64 or uint64.
bool fits_64_bits(const uint8_t *p, const uint8_t *end) {
    bool negative = *p == '-';
    if (negative) { p++; }
    const char *limit = negative ? "9223372036854775808" : "18446744073709551615";
    size_t digits = size_t(end - p), limit_digits = strlen(limit);
    if (digits != limit_digits) { return digits < limit_digits; }
    return memcmp(p, limit, digits) <= 0;
}

/// A number simdjson cannot represent: the how-many-th number of the text it is, and its nearest double.
struct large_number {
    size_t ordinal;
    double value;
};

/// Independent of what anybody did with setlocale.
double decimal_value(const uint8_t *token) {
    static locale_t c_locale = newlocale(LC_ALL_MASK, "C", locale_t(0));
    return strtod_l(reinterpret_cast<const char *>(token), nullptr, c_locale);
}

/// Overwrites every well-formed number that simdjson refuses by `1.0` and spaces, so that the text keeps its shape.
/// `text` is followed by a NUL.
std::vector<large_number> replace_large_numbers(uint8_t *text, size_t length) {
    std::vector<large_number> replaced;
    uint8_t *p = text, *end = text + length;
    size_t ordinal = 0;
    while (p < end) {
        if (*p == '"') {
            for (p++; p < end && *p != '"'; p++) {
                if (*p == '\\') { p++; }
            }
            p++;
        } else if (ends_token(*p)) {
            p++;
        } else {
            uint8_t *token = p;
            while (p < end && !ends_token(*p)) { p++; }
            if (*token != '-' && !is_digit(*token)) { continue; }
            bool is_integer;
            if (is_json_number(token, p, is_integer) && p - token >= 3) {
                double value = decimal_value(token);
                if (is_integer ? !fits_64_bits(token, p) : std::isinf(value)) {
                    replaced.push_back({ordinal, value});
                    memset(token, ' ', size_t(p - token));
                    memcpy(token, "1.0", 3);
                }
            }
            ordinal++;
        }
    }
    return replaced;
}

size_t tape_length(const uint64_t *tape) { return size_t(tape[0] & internal::JSON_VALUE_MASK); }

void restore_large_numbers(uint64_t *tape, const std::vector<large_number> &numbers) {
    size_t ordinal = 0;
    auto next = numbers.begin();
    size_t length = tape_length(tape);
    for (size_t i = 1; i < length && next != numbers.end(); i++) {
        char type = char(tape[i] >> 56);
        if (type != 'd' && type != 'l' && type != 'u') { continue; }
        if (ordinal++ == next->ordinal) {
            if (std::isinf(next->value)) { tape[i] |= CSIMDJSON_HUGE_NUMBER; }
            memcpy(&tape[i + 1], &next->value, sizeof(double));
            next++;
        }
        i++;
    }
}

/// simdjson does not count the innermost level when it is `[]` or `{}`.
bool is_within_depth(const uint64_t *tape, size_t max_depth) {
    size_t depth = 0, length = tape_length(tape);
    for (size_t i = 1; i < length; i++) {
        switch (char(tape[i] >> 56)) {
        case '[': case '{':
            if (++depth > max_depth) { return false; }
            break;
        case ']': case '}': depth--; break;
        case 'd': case 'l': case 'u': i++; break;
        default: break;
        }
    }
    return true;
}

/// Counted in bytes of 255 at most, so that the compiler can use whole vectors.
size_t opening_brackets(const uint8_t *bytes, size_t length) {
    size_t total = 0;
    for (size_t start = 0; start < length; start += 255) {
        size_t end = start + 255 < length ? start + 255 : length;
        uint8_t count = 0;
        for (size_t i = start; i < end; i++) { count = uint8_t(count + ((bytes[i] | 0x20) == '{')); }
        total += count;
    }
    return total;
}

/// Whether the document may be too deep at all: every level takes two words of tape and a bracket of text.
bool may_exceed_depth(const uint64_t *tape, const uint8_t *bytes, size_t length, size_t max_depth) {
    return tape_length(tape) / 2 > max_depth && opening_brackets(bytes, length) > max_depth;
}

csimdjson_result result_of(error_code code) {
    switch (code) {
    case SUCCESS: return CSIMDJSON_OK;
    case DEPTH_ERROR: return CSIMDJSON_TOO_DEEP;
    case MEMALLOC: case CAPACITY: return CSIMDJSON_OUT_OF_MEMORY;
    default: return CSIMDJSON_NOT_JSON;
    }
}

} // namespace

struct csimdjson_parser {
    dom::parser parser{};
    dom::document document{};
    std::unique_ptr<uint8_t[]> text{};
    size_t capacity = 0;
    size_t depth = 0;

    error_code reserve(size_t length, size_t max_depth) {
        bool is_oversized = capacity > retained_capacity && length < capacity / 4;
        if (length > capacity || is_oversized) {
            size_t needed = smallest_capacity;
            while (needed < length) { needed *= 2; }
            if (auto code = resize(needed, max_depth)) { return code; }
        } else if (max_depth != depth) {
            if (auto code = parser.allocate(capacity, max_depth)) { return code; }
            depth = max_depth;
        }
        return SUCCESS;
    }

    error_code resize(size_t new_capacity, size_t max_depth) {
        drop();
        text.reset(new (std::nothrow) uint8_t[new_capacity + CSIMDJSON_PADDING]);
        if (!text) { return MEMALLOC; }
        if (auto code = document.allocate(new_capacity)) { return code; }
        if (auto code = parser.allocate(new_capacity, max_depth)) { return code; }
        capacity = new_capacity;
        depth = max_depth;
        return SUCCESS;
    }

    void drop() {
        text.reset();
        parser = dom::parser();
        document = dom::document();
        capacity = 0;
        depth = 0;
    }

    uint8_t *copy(const uint8_t *bytes, size_t length) {
        memcpy(text.get(), bytes, length);
        memset(text.get() + length, 0, CSIMDJSON_PADDING);
        return text.get();
    }

    error_code parse(const uint8_t *padded, size_t length) {
        return parser.parse_into_document(document, padded, length, false).error();
    }
};

csimdjson_parser *csimdjson_parser_create(void) { return new (std::nothrow) csimdjson_parser(); }

void csimdjson_parser_destroy(csimdjson_parser *parser) { delete parser; }

void csimdjson_parser_trim(csimdjson_parser *parser) {
    if (parser->capacity > retained_capacity) { parser->drop(); }
}

size_t csimdjson_parser_retained_bytes(const csimdjson_parser *parser) { return parser->capacity * 15; }

csimdjson_result csimdjson_parse(csimdjson_parser *parser, const uint8_t *bytes, size_t length, size_t max_depth,
                                 bool is_padded, csimdjson_document *document) {
    if (length == 0) { return CSIMDJSON_NOT_JSON; }
    // Later versions of simdjson skip a byte order mark; it is no JSON here, whatever the version.
    if (length >= 3 && bytes[0] == 0xEF && bytes[1] == 0xBB && bytes[2] == 0xBF) { return CSIMDJSON_NOT_JSON; }

    // simdjson refuses a non-empty container at its own max_depth, so one more is asked for.
    if (auto code = parser->reserve(length, max_depth + 1)) { return result_of(code); }
    error_code code = parser->parse(is_padded ? bytes : parser->copy(bytes, length), length);
    if (code == NUMBER_ERROR) {
        auto replaced = replace_large_numbers(parser->copy(bytes, length), length);
        if (replaced.empty()) { return CSIMDJSON_NOT_JSON; }
        code = parser->parse(parser->text.get(), length);
        if (code == SUCCESS) { restore_large_numbers(parser->document.tape.get(), replaced); }
    }
    if (code != SUCCESS) { return result_of(code); }
    document->tape = parser->document.tape.get();
    document->strings = parser->document.string_buf.get();
    if (may_exceed_depth(document->tape, bytes, length, max_depth) && !is_within_depth(document->tape, max_depth)) {
        return CSIMDJSON_TOO_DEEP;
    }
    return CSIMDJSON_OK;
}
