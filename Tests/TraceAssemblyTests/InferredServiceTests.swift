// Names of services that did not report themselves (`service-graph.md` §3).

import Segments
import Testing

@testable import TraceAssembly

@Suite struct InferredServiceTests {
    // If this fails, one table is drawn as three nodes because three SDKs spell DynamoDB in three ways.
    @Test(arguments: [
        ("DynamoDB", "table_name", "t", "AWS::DynamoDB::Table"),
        ("DynamoDb", "table_name", "t", "AWS::DynamoDB::Table"),
        ("dynamodb", "table_name", "t", "AWS::DynamoDB::Table"),
        ("AmazonDynamoDBv2", "table_name", "t", "AWS::DynamoDB::Table"),
        ("s3", "bucket_name", "b", "AWS::S3::Bucket"), ("Amazon S3", "bucket_name", "b", "AWS::S3::Bucket"),
        ("sqs", "queue_url", "https://q", "AWS::SQS::Queue"),
        ("AmazonSQS", "queue_url", "https://q", "AWS::SQS::Queue"),
        ("SNS", "topic_arn", "arn:t", "AWS::SNS"), ("AWSLambda", "function_name", "f", "AWS::Lambda"),
    ])
    func `a call with its operation and resource is named after the resource`(
        name: String, key: String, resource: String, type: String
    ) throws {
        let service = try inferred(name, ",\"aws\":{\"operation\":\"X\",\"\(key)\":\"\(resource)\"}")
        #expect(service.name == resource)
        #expect(service.type == type)
        #expect(service.isNamedResource)
    }

    // If this fails, calls without a resource get a wrong or unstable name (ruling R-11).
    @Test(arguments: [
        ("sqs", "", "SQS", "AWS::SQS"), ("AmazonS3", ",\"aws\":{\"bucket_name\":\"b\"}", "S3", "AWS::S3"),
        ("DynamoDB", ",\"aws\":{\"operation\":\"ListTables\"}", "DynamoDB", "AWS::DynamoDB"),
        ("kinesis", ",\"aws\":{\"operation\":\"PutRecord\"}", "kinesis", "AWS::kinesis"),
        ("AmazonKinesis", "", "AmazonKinesis", "AWS::AmazonKinesis"),
        (
            "DynamoDB", ",\"aws\":{\"operation\":\"BatchGetItem\",\"table_names\":[\"a\",\"b\"]}", "DynamoDB",
            "AWS::DynamoDB"
        ),
    ])
    func `a call without a resource is named after the service`(
        name: String, aws: String, expected: String, type: String
    ) throws {
        let service = try inferred(name, aws)
        #expect(service.name == expected)
        #expect(service.type == type)
        #expect(!service.isNamedResource)
    }

    // If this fails, batch calls to one table leave the table's node.
    @Test func `one entry in table_names counts as table_name, and resource_names never names anything`() throws {
        let service = try inferred(
            "DynamoDB", ",\"aws\":{\"operation\":\"BatchGetItem\",\"table_names\":[\"a\"],\"resource_names\":[\"z\"]}")
        #expect(service.name == "a")
        #expect(
            try inferred("DynamoDB", ",\"aws\":{\"operation\":\"X\",\"resource_names\":[\"z\"]}").name == "DynamoDB")
    }

    // If this fails, a plain HTTP call is drawn as an AWS service.
    @Test func `a remote call is named after its subsegment`() throws {
        let folded = try FoldedTrace([
            segment(1, subsegments(embedded(2, "orders.internal", ",\"namespace\":\"remote\"")))
        ])
        #expect(
            folded.forest.inferredService(ofCall: 1) == ServiceID(name: "orders.internal", type: "remote", account: nil)
        )
    }

    private func inferred(_ name: String, _ aws: String) throws -> InferredService {
        let folded = try FoldedTrace([segment(1, subsegments(embedded(2, name, ",\"namespace\":\"aws\"" + aws)))])
        return InferredService(of: folded.trace.entities[1].entity)
    }
}
