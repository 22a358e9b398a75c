// Which log a process uses: the one in PostgreSQL, or Kafka when brokers are named. The same flags for servers and for the
// commands that look at the log.

import ArgumentParser
import Logging
import PostgreSQL
import SegmentLog
import TraceStore

struct LogSettings: Sendable {
    /// `host:port`, several with commas; nil: the log is in PostgreSQL.
    var kafkaBrokers: String?
    var kafkaTopic: String
    /// Settings of librdkafka.
    var kafkaProperties: [(name: String, value: String)]
    /// Of a topic that is created; nil: 3, or the number of brokers.
    var kafkaReplication: Int?
    /// Of a log that is created.
    var partitions: Int
    /// Somebody asked for so many: a topic that exists and has fewer gets the missing ones.
    var isPartitionCountStated: Bool
    var retentionDays: Int

    static let names: Set<String> = ["kafka-brokers", "kafka", "kafka-topic", "kafka-replication", "partitions"]

    /// - Parameter partitions: the default without Kafka.
    init(_ reader: SettingsReader, partitions: Int, retentionDays: Int) throws {
        self.retentionDays = retentionDays
        kafkaBrokers = try reader.text("kafka-brokers")?.value
        if let (brokers, origin) = try reader.text("kafka-brokers"),
            !brokers.split(separator: ",", omittingEmptySubsequences: false).allSatisfy({
                ListenAddress(String($0)) != nil
            })
        {
            throw CommandFailure("\(origin) must be HOST:PORT, several with commas, not `\(brokers)`")
        }
        let (topic, topicOrigin) = try reader.text("kafka-topic") ?? ("beamline.segments", "--kafka-topic")
        let isName = topic.utf8.allSatisfy {
            (0x61...0x7A).contains($0) || (0x41...0x5A).contains($0) || (0x30...0x39).contains($0) || $0 == 0x2D
                || $0 == 0x2E || $0 == 0x5F
        }
        guard isName, (1...249).contains(topic.utf8.count), topic != ".", topic != ".." else {
            throw CommandFailure(
                "\(topicOrigin) must be 1 to 249 of the characters a-z A-Z 0-9 . _ -, not `\(topic)`")
        }
        kafkaTopic = topic
        kafkaProperties = []
        if let (text, origin) = try reader.text("kafka") {
            for part in text.split(whereSeparator: { $0 == ";" || $0.isNewline }) {
                guard let equals = part.firstIndex(of: "="), equals != part.startIndex else {
                    throw CommandFailure("\(origin) must be KEY=VALUE with a setting of librdkafka, not `\(part)`")
                }
                kafkaProperties.append(
                    (
                        part[..<equals].trimmingPrefix { $0 == " " }.description,
                        part[part.index(after: equals)...].description
                    ))
            }
        }
        kafkaReplication = nil
        if try reader.text("kafka-replication") != nil {
            kafkaReplication = try reader.integer("kafka-replication", default: 1, in: 1...32)
        }
        isPartitionCountStated = try reader.text("partitions") != nil
        self.partitions = try reader.integer(
            "partitions", default: kafkaBrokers == nil ? partitions : 12, in: 1...256)
    }

    /// As the database remembers the log that it belongs to.
    var source: String { kafkaBrokers == nil ? "postgresql" : "kafka topic \(kafkaTopic)" }

    /// Opens the log, which makes it if it is not there.
    /// - Parameter knownPartitions: the log must have at least as many.
    func open(database: PostgresConfiguration, knownPartitions: Int, logger: Logger) async throws -> any SegmentLog {
        if let kafkaBrokers {
            var options = KafkaLogOptions()
            options.topic = kafkaTopic
            options.partitionCount = partitions
            options.addsPartitions = isPartitionCountStated
            options.knownPartitionCount = knownPartitions
            options.replicationFactor = kafkaReplication
            options.retention = .seconds(retentionDays * 86_400)
            options.properties = kafkaProperties
            return try await KafkaLog.open(brokers: kafkaBrokers, options: options, logger: logger)
        }
        var options = PostgresLogOptions()
        options.partitionCount = partitions
        return try await PostgresLog.open(database: database, options: options, logger: logger)
    }
}

/// The flags of the log.
struct LogOptions: ParsableArguments {
    @Option(
        help:
            "Kafka brokers, HOST:PORT,HOST:PORT; without them the log is in PostgreSQL. (default: BEAMLINE_KAFKA_BROKERS)"
    )
    var kafkaBrokers: String?
    @Option(
        name: .customLong("kafka"),
        help: "A setting of librdkafka as KEY=VALUE; may be given several times (BEAMLINE_KAFKA and file: parted by ;).")
    var kafkaProperties: [String] = []
    @Option(help: "Topic of the documents. (default: BEAMLINE_KAFKA_TOPIC, else beamline.segments)") var kafkaTopic: String?
    @Option(help: "Replicas of a topic that is made. (default: 3, or the number of brokers)")
    var kafkaReplication: String?

    var flags: [String: String?] {
        [
            "kafka-brokers": kafkaBrokers,
            "kafka": kafkaProperties.isEmpty ? nil : kafkaProperties.joined(separator: "\n"),
            "kafka-topic": kafkaTopic, "kafka-replication": kafkaReplication,
        ]
    }

    /// For a command that is no server: flags, then environment.
    func settings() async throws -> LogSettings {
        let reader = try await SettingsReader(flags: flags.compactMapValues { $0 }, known: ServerSettings.names)
        return try LogSettings(reader, partitions: 1, retentionDays: 30)
    }
}

extension DatabaseOptions {
    /// Calls `body` with the log that the database belongs to. It is not made if no server has made it yet.
    func withLog<Result>(
        _ options: LogOptions, store: TraceStore, _ body: (any SegmentLog) async throws -> Result
    ) async throws -> Result {
        var settings = try await options.settings()
        // Looking at a log does not make it grow.
        settings.isPartitionCountStated = false
        guard let known = try await store.logSource() else {
            throw CommandFailure("there is no log yet: no server has been started with this database")
        }
        guard known == settings.source else {
            throw CommandFailure(
                "this database belongs to the log `\(known)`, not to `\(settings.source)`; give its settings (--kafka-brokers, --kafka-topic)"
            )
        }
        let partitions = try await store.positions().count
        return try await withDatabase { database in
            let log = try await settings.open(database: database, knownPartitions: partitions, logger: commandLogger)
            do {
                let result = try await body(log)
                await log.close()
                return result
            } catch {
                await log.close()
                throw error
            }
        }
    }
}
