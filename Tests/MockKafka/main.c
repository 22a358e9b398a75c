// A Kafka cluster of librdkafka's mock brokers, as a process of its own, for tests of what brokers do wrong.
//
//   MockKafka BROKERS [TOPIC PARTITIONS]...
//
// Prints the bootstrap list as its first line, then obeys one command per line of standard input, answering each with
// `ok` or `error REASON`; ends at `quit` or at the end of the input.
//
//   topic NAME PARTITIONS REPLICAS       error APIKEY CODE COUNT (of any broker)      down BROKER    up BROKER
//   late BROKER APIKEY CODE MS COUNT     rtt BROKER MS      leader TOPIC PARTITION BROKER    clear APIKEY
//
// `late` answers the next requests after a delay, with an error code or with 0: the request is carried out only with 0.

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void answer(rd_kafka_resp_err_t error) {
    if (error) printf("error %s\n", rd_kafka_err2name(error));
    else printf("ok\n");
    fflush(stdout);
}

static rd_kafka_resp_err_t push_errors(rd_kafka_mock_cluster_t *cluster, int key, int code, int count) {
    rd_kafka_resp_err_t errors[1000];
    if (count < 1 || count > 1000) return RD_KAFKA_RESP_ERR__INVALID_ARG;
    for (int i = 0; i < count; i++) errors[i] = (rd_kafka_resp_err_t)code;
    rd_kafka_mock_push_request_errors_array(cluster, (int16_t)key, (size_t)count, errors);
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

int main(int argc, char **argv) {
    char reason[512], line[1024], name[256];
    int a, b, c, d, e;
    int brokers = argc > 1 ? atoi(argv[1]) : 1;
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_t *client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof reason);
    if (!client) {
        fprintf(stderr, "MockKafka: %s\n", reason);
        return 1;
    }
    rd_kafka_mock_cluster_t *cluster = rd_kafka_mock_cluster_new(client, brokers);
    if (!cluster) {
        fprintf(stderr, "MockKafka: the cluster does not start\n");
        return 1;
    }
    for (int i = 2; i + 1 < argc; i += 2)
        rd_kafka_mock_topic_create(cluster, argv[i], atoi(argv[i + 1]), brokers < 3 ? brokers : 3);
    printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
    fflush(stdout);

    while (fgets(line, sizeof line, stdin)) {
        if (strncmp(line, "quit", 4) == 0) break;
        if (sscanf(line, "topic %255s %d %d", name, &a, &b) == 3)
            answer(rd_kafka_mock_topic_create(cluster, name, a, b));
        else if (sscanf(line, "error %d %d %d", &a, &b, &c) == 3) answer(push_errors(cluster, a, b, c));
        else if (sscanf(line, "late %d %d %d %d %d", &a, &b, &c, &d, &e) == 5) {
            rd_kafka_resp_err_t error = RD_KAFKA_RESP_ERR_NO_ERROR;
            for (int i = 0; i < e && !error; i++)
                error = rd_kafka_mock_broker_push_request_error_rtts(cluster, a, (int16_t)b, 1, (rd_kafka_resp_err_t)c, d);
            answer(error);
        } else if (sscanf(line, "clear %d", &a) == 1) {
            rd_kafka_mock_clear_request_errors(cluster, (int16_t)a);
            answer(RD_KAFKA_RESP_ERR_NO_ERROR);
        } else if (sscanf(line, "down %d", &a) == 1) answer(rd_kafka_mock_broker_set_down(cluster, a));
        else if (sscanf(line, "up %d", &a) == 1) answer(rd_kafka_mock_broker_set_up(cluster, a));
        else if (sscanf(line, "rtt %d %d", &a, &b) == 2) answer(rd_kafka_mock_broker_set_rtt(cluster, a, b));
        else if (sscanf(line, "leader %255s %d %d", name, &a, &b) == 3)
            answer(rd_kafka_mock_partition_set_leader(cluster, name, a, b));
        else answer(RD_KAFKA_RESP_ERR__INVALID_ARG);
    }
    rd_kafka_mock_cluster_destroy(cluster);
    rd_kafka_destroy(client);
    return 0;
}
