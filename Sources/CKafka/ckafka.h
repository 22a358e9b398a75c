// librdkafka for Swift: the header, and helpers where its interface is made of tagged unions, macros or many small calls
// per message. One call per message crosses the language border.
#pragma once
#include <librdkafka/rdkafka.h>
#include <string.h>

/// A header of a message; no name = the header is absent.
typedef struct {
    const char *name;
    const void *value;
    size_t size;
} ckafka_header;

/// Queues one message; key, value and headers are copied. `value` NULL is a null value, which differs from an empty one.
static inline rd_kafka_resp_err_t ckafka_produce(
    rd_kafka_t *client, rd_kafka_topic_t *topic, int32_t partition, const void *key, size_t key_size, const void *value,
    size_t value_size, int64_t timestamp_ms, const ckafka_header *headers, size_t header_count, void *opaque) {
    rd_kafka_vu_t vus[8];
    size_t count = 0;
    vus[count].vtype = RD_KAFKA_VTYPE_RKT;
    vus[count++].u.rkt = topic;
    vus[count].vtype = RD_KAFKA_VTYPE_PARTITION;
    vus[count++].u.i32 = partition;
    vus[count].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
    vus[count++].u.i = RD_KAFKA_MSG_F_COPY;
    vus[count].vtype = RD_KAFKA_VTYPE_KEY;
    vus[count].u.mem.ptr = (void *)key;
    vus[count++].u.mem.size = key_size;
    vus[count].vtype = RD_KAFKA_VTYPE_VALUE;
    vus[count].u.mem.ptr = (void *)value;
    vus[count++].u.mem.size = value_size;
    vus[count].vtype = RD_KAFKA_VTYPE_TIMESTAMP;
    vus[count++].u.i64 = timestamp_ms;
    vus[count].vtype = RD_KAFKA_VTYPE_OPAQUE;
    vus[count++].u.ptr = opaque;
    // A list of our own: single headers are freed twice by librdkafka 2.0 when the partition is unknown.
    rd_kafka_headers_t *list = rd_kafka_headers_new(header_count);
    for (size_t i = 0; i < header_count; i++)
        if (headers[i].name)
            rd_kafka_header_add(list, headers[i].name, -1, headers[i].value, (ssize_t)headers[i].size);
    vus[count].vtype = RD_KAFKA_VTYPE_HEADERS;
    vus[count++].u.headers = list;
    rd_kafka_error_t *error = rd_kafka_produceva(client, vus, count);
    if (!error) return RD_KAFKA_RESP_ERR_NO_ERROR;
    rd_kafka_resp_err_t code = rd_kafka_error_code(error);
    rd_kafka_error_destroy(error);
    rd_kafka_headers_destroy(list);
    return code;
}

/// Finds the headers named in `headers` (last one wins) in one pass; those that are missing or null keep value NULL.
/// The values live as long as the message.
static inline void ckafka_find_headers(const rd_kafka_message_t *message, ckafka_header *headers, size_t count) {
    rd_kafka_headers_t *list = NULL;
    const char *name;
    const void *value;
    size_t size;
    if (rd_kafka_message_headers(message, &list) != RD_KAFKA_RESP_ERR_NO_ERROR) return;
    for (size_t at = 0; rd_kafka_header_get_all(list, at, &name, &value, &size) == RD_KAFKA_RESP_ERR_NO_ERROR; at++)
        for (size_t i = 0; i < count; i++)
            if (strcmp(name, headers[i].name) == 0) {
                headers[i].value = value;
                headers[i].size = size;
            }
}
