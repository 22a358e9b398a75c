// swift-tools-version: 6.1
import PackageDescription

// Dependencies point one way: C shims <- pure core <- adapters <- roles <- executable.
let settings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
]

func module(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

// Tests are not optimised: they compile faster, and Swift 6.3.1 crashes on some of their asynchronous closures with -O.
let testSettings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .unsafeFlags(["-Onone"], .when(configuration: .release)),
]

func tests(of name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .testTarget(name: name + "Tests", dependencies: [.init(stringLiteral: name)] + dependencies, swiftSettings: testSettings)
}

let crypto = Target.Dependency.product(name: "Crypto", package: "swift-crypto")
let hummingbird = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let hummingbirdCore = Target.Dependency.product(name: "HummingbirdCore", package: "hummingbird")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let lifecycle = Target.Dependency.product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let nioPosix = Target.Dependency.product(name: "NIOPosix", package: "swift-nio")
let nioCore = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let nioHTTP1 = Target.Dependency.product(name: "NIOHTTP1", package: "swift-nio")
let nioTLS = Target.Dependency.product(name: "NIOTLS", package: "swift-nio")
let nioSSL = Target.Dependency.product(name: "NIOSSL", package: "swift-nio-ssl")
let nioHTTP2 = Target.Dependency.product(name: "NIOHTTP2", package: "swift-nio-http2")
let nioHPACK = Target.Dependency.product(name: "NIOHPACK", package: "swift-nio-http2")
let unixSignals = Target.Dependency.product(name: "UnixSignals", package: "swift-service-lifecycle")

let package = Package(
    name: "beamline",
    platforms: [.macOS(.v15)],
    products: [.executable(name: "beamline", targets: ["Beamline"])],
    dependencies: [
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/apple/swift-nio-http2", from: "1.46.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-configuration", from: "1.4.0", traits: ["YAML"]),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    ],
    targets: [
        // C shims: a header, a module map and nothing clever.
        .target(name: "CSimdJSON", linkerSettings: [.linkedLibrary("simdjson"), .linkedLibrary("m")]),
        .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
        .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
        .systemLibrary(name: "CPostgreSQL", pkgConfig: "libpq", providers: [.apt(["libpq-dev"])]),
        .systemLibrary(name: "CKafka", pkgConfig: "rdkafka", providers: [.apt(["librdkafka-dev"])]),

        // Pure core: no I/O, no clock.
        module("JSONText", ["CSimdJSON"]),
        module("Segments", ["JSONText"]),
        module("TraceAssembly", ["Segments", "JSONText", crypto]),
        module("ServiceGraph", ["TraceAssembly", "Segments"]),
        module("FilterExpressions", ["TraceAssembly", "Segments", "JSONText"]),
        module("SearchIndex", ["FilterExpressions", "TraceAssembly", "Segments"]),
        module("AccessControl", ["Segments", crypto]),
        module("XRayAPI", ["JSONText", "Segments", "TraceAssembly", "ServiceGraph", "FilterExpressions", crypto]),

        // Adapters.
        module("Observability", [nioCore]),
        module("PostgreSQL", ["CPostgreSQL", logging]),
        module("PrivatePostgreSQL", [logging, lifecycle]),
        module("SegmentLog", ["PostgreSQL", "Segments", "CZstd", "CKafka", logging]),
        module("TraceStore", ["PostgreSQL", "AccessControl", "FilterExpressions", "Segments", "TraceAssembly", "ServiceGraph", "SearchIndex", "CZstd", logging]),

        // Roles.
        module("APIServer", ["AccessControl", "XRayAPI", "Segments", "JSONText", "Observability", "CZlib",
                             hummingbird, hummingbirdCore, nioPosix, nioCore, nioHTTP1, nioTLS, nioSSL, nioHTTP2, nioHPACK,
                             unixSignals, crypto, logging, lifecycle]),
        module("Ingest", ["SegmentLog", "AccessControl", "APIServer", "XRayAPI", "Segments", "JSONText", "Observability",
                          nioPosix, nioCore, logging, lifecycle]),
        module("Aggregation", ["SegmentLog", "TraceStore", "PostgreSQL", "FilterExpressions", "Segments", "TraceAssembly", "ServiceGraph", "SearchIndex", "Observability", logging, lifecycle]),
        module("Query", ["SegmentLog", "TraceStore", "AccessControl", "XRayAPI", "Segments", "TraceAssembly", "ServiceGraph", "SearchIndex", "FilterExpressions", "JSONText",
                         "Observability", "APIServer", logging]),
        module("LoadGeneration", ["AccessControl", "Segments", "JSONText", crypto,
                                  .product(name: "Histogram", package: "hdrhistogram-swift")]),
        module("Verification", ["LoadGeneration", "TraceStore", "XRayAPI", "Segments", "TraceAssembly", "ServiceGraph", "JSONText"]),

        .executableTarget(
            name: "Beamline",
            dependencies: [
                "APIServer", "Ingest", "Aggregation", "Query", "LoadGeneration", "Verification", "TraceStore", "SegmentLog", "PostgreSQL", "PrivatePostgreSQL",
                "AccessControl", "XRayAPI", "Segments", "SearchIndex", "FilterExpressions", "TraceAssembly", "JSONText", "Observability",
                hummingbird, logging, lifecycle, crypto, nioCore,
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Configuration", package: "swift-configuration"),
                unixSignals,
            ],
            swiftSettings: settings,
            // The allocator of the process: linking it replaces malloc (a tenth less processor time per document).
            linkerSettings: [.linkedLibrary("mimalloc")]),

        // Tests: one target per module. Tests/Acceptance holds what drives the built program with real clients.
        // Brokers that fail on command, for the tests of the log.
        .executableTarget(name: "MockKafka", dependencies: ["CKafka"], path: "Tests/MockKafka"),
        .target(name: "Fixtures", path: "Tests/Fixtures", swiftSettings: testSettings),
        tests(of: "JSONText"),
        tests(of: "Segments", ["JSONText"]),
        tests(of: "TraceAssembly", ["Fixtures", "Segments", "JSONText"]),
        tests(of: "ServiceGraph", ["Fixtures", "Segments", "TraceAssembly"]),
        tests(of: "FilterExpressions", ["Fixtures", "TraceAssembly", "Segments", "ServiceGraph", "JSONText"]),
        tests(of: "SearchIndex", ["Fixtures", "FilterExpressions", "TraceAssembly", "Segments"]),
        tests(of: "AccessControl", ["Segments", crypto]),
        tests(of: "XRayAPI", ["JSONText", "Segments", "TraceAssembly", "ServiceGraph"]),
        tests(of: "Observability"),
        tests(of: "PostgreSQL", ["PrivatePostgreSQL", logging]),
        tests(of: "PrivatePostgreSQL", [logging]),
        tests(of: "SegmentLog", ["MockKafka", "CKafka", "PostgreSQL", "PrivatePostgreSQL", "Segments", logging]),
        tests(of: "TraceStore", ["PostgreSQL", "PrivatePostgreSQL", "AccessControl", "Segments", "TraceAssembly", "ServiceGraph", logging]),
        tests(of: "APIServer", ["AccessControl", "XRayAPI", "Segments", "CZlib", nioPosix, nioCore, nioHTTP1, nioTLS, nioSSL, nioHTTP2, nioHPACK,
                             crypto, logging, lifecycle]),
        tests(of: "Ingest"),
        tests(of: "Aggregation", ["Fixtures", "SegmentLog", "TraceStore", "SearchIndex", "FilterExpressions", "PostgreSQL", "PrivatePostgreSQL", "Observability",
                                  "Segments", "TraceAssembly", "ServiceGraph", logging]),
        tests(of: "Query", ["Fixtures", "APIServer", "AccessControl", "JSONText", "SegmentLog", "Segments", "SearchIndex", "FilterExpressions", "ServiceGraph", "TraceAssembly",
                            "TraceStore", "XRayAPI", "Observability", "PostgreSQL", "PrivatePostgreSQL", nioCore, nioHTTP1, logging]),
        tests(of: "LoadGeneration", ["JSONText", "Segments"]),
        tests(of: "Verification", ["Segments", "ServiceGraph"]),
        tests(of: "Beamline", ["TraceStore"]),
    ],
    cxxLanguageStandard: .cxx17
)
