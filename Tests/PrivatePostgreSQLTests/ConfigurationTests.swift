import Testing

@testable import PrivatePostgreSQL

// If this fails, a data folder with a quote or a line end in its name writes its own PostgreSQL settings.
@Test func `a folder name cannot leave its setting`() {
    let text = ClusterConfiguration.postgresql(name: "/a'\nfsync = off #\\", major: 15)
    #expect(text.contains("cluster_name = '/a??fsync = off #?'\n"))
    #expect(!text.contains("\nfsync = off"))
}

// If this fails, an acknowledged document can be lost by a power failure.
@Test(arguments: [13, 14, 15, 16, 17]) func `every version is configured for full safety`(major: Int) {
    let text = ClusterConfiguration.postgresql(name: "/data", major: major)
    for setting in ["fsync = on", "synchronous_commit = on", "full_page_writes = on", "listen_addresses = ''"] {
        #expect(text.contains("\n\(setting)\n"))
    }
}

// If this fails, a killed program is reported as a success.
@Test func `wait statuses are read as a shell does`() {
    #expect(ChildProcess.exitCode(0) == 0)
    #expect(ChildProcess.exitCode(1 << 8) == 1)
    #expect(ChildProcess.exitCode(9) == 137)
}
