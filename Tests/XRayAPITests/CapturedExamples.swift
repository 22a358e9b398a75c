// One captured example of each request and response of the operations this module knows, as a client sends and sees it.

enum CapturedExamples {
    static let putTraceSegments = #"""
        {"TraceSegmentDocuments": ["{\"trace_id\": \"1-65536f00-0123456789abcdef01234567\", \"id\": \"00c0ffee00c0ffee\", \"name\": \"checkout\", \"start_time\": 1700000000.125, \"end_time\": 1700000000.375}", "{\"id\":\"0badcafe\",\"name\":\"caf\u00e9 \\\"bar\\\"\"}\n"]}
        """#
    static let putTraceSegmentsAnswer =
        #"{"UnprocessedTraceSegments":[{"Id":"9f1c20aa00d1e7b2","ErrorCode":"InvalidTraceId","Message":"Invalid segment. ErrorCode: InvalidTraceId"},{"ErrorCode":"ParseError","Message":"Invalid entity. ErrorCode: ParseError"},{"Id":"00c0ffee00c0ffee","ErrorCode":"MissingEndTime","Message":"Invalid subsegment. ErrorCode: MissingEndTime, Cause: null"}]}"#

    static let putTelemetryRecords = #"""
        {"EC2InstanceId":"","Hostname":"ip-10-0-0-7","ResourceARN":"","TelemetryRecords":[{"BackendConnectionErrors":{"ConnectionRefusedCount":0,"HTTPCode4XXCount":1,"HTTPCode5XXCount":0,"OtherCount":2,"TimeoutCount":0,"UnknownHostCount":0},"SegmentsReceivedCount":120,"SegmentsRejectedCount":1,"SegmentsSentCount":119,"SegmentsSpilloverCount":0,"Timestamp":1700000000.25}]}
        """#

    static let batchGetTraces =
        #"{"TraceIds":["1-65536F00-0123456789ABCDEF01234567","5759e988bd862e3fe1be46a994272793"],"NextToken":null}"#
    static let getTraceGraph = #"{"TraceIds":["1-65536f00-0123456789abcdef01234567"]}"#
    static let getTraceSummaries =
        #"{"StartTime":1700000000,"EndTime":1700003600.5,"TimeRangeType":"Event","Sampling":true,"SamplingStrategy":{"Name":"FixedRate","Value":0.25},"FilterExpression":""}"#
    static let getServiceGraph = #"{"StartTime":"2023-11-14T22:13:20Z","EndTime":"1700000200","GroupName":"Default"}"#
    static let createGroup =
        #"{"GroupName":"slow-checkout","FilterExpression":"service(\"checkout\") { responsetime > 2 }","InsightsConfiguration":{"InsightsEnabled":true,"NotificationsEnabled":false},"Tags":[{"Key":"team","Value":"pay"},{"Key":"Stufe","Value":""}]}"#
    static let getTimeSeries =
        #"{"StartTime":1700000000,"EndTime":1700003600,"GroupName":"slow","EntitySelectorExpression":"service(\"orders\")","Period":300,"ForecastStatistics":true}"#
    static let encryptionConfigAnswer = #"{"EncryptionConfig":{"Status":"ACTIVE","Type":"NONE"}}"#
}
