// The text of postgresql.conf and pg_hba.conf of a private cluster. Written anew at each start; settings of one's own
// go into local.conf in the same folder, which wins.

enum ClusterConfiguration {
    /// - Parameters:
    ///   - name: shown by `ps`; the folder the cluster belongs to.
    ///   - major: PostgreSQL's major version.
    static func postgresql(name: String, major: Int) -> String {
        let title = String(
            decoding: name.utf8.map { (0x20..<0x7F).contains($0) && $0 != 0x27 && $0 != 0x5C ? $0 : 0x3F }.suffix(60),
            as: UTF8.self)
        return """
            # Written by Beamline at each start. Put settings of your own into local.conf beside this file.
            cluster_name = '\(title)'

            # Only over a socket in this folder, which only its owner can enter: so no passwords.
            listen_addresses = ''
            unix_socket_directories = '.'
            unix_socket_permissions = 0700
            max_connections = 50

            # Full safety: what is acknowledged is on disk.
            fsync = on
            synchronous_commit = on
            full_page_writes = on

            # One writer of large, compressed rows and few clients.
            shared_buffers = 256MB
            work_mem = 16MB
            maintenance_work_mem = 64MB
            effective_cache_size = 1GB
            random_page_cost = 1.1
            jit = off
            max_parallel_workers_per_gather = 0

            # No replicas: the smallest log, few and spread checkpoints.
            wal_level = minimal
            max_wal_senders = 0
            wal_buffers = 16MB
            wal_compression = \(major >= 15 ? "lz4" : "on")
            min_wal_size = 256MB
            max_wal_size = 2GB
            checkpoint_timeout = 15min
            checkpoint_completion_target = 0.9
            \(major >= 14 ? "recovery_init_sync_method = syncfs" : "")

            # Merged rows of the graph and the search index: their space is used again before the tables grow.
            autovacuum_naptime = 10s
            autovacuum_vacuum_scale_factor = 0.05
            timezone = 'UTC'
            log_timezone = 'UTC'
            lc_messages = 'C'
            log_line_prefix = '%m [%p] '
            log_checkpoints = off

            include_if_exists = 'local.conf'

            """
    }

    static let hostBasedAuthentication = """
        # Written by Beamline at each start: the folder's permissions decide who can connect.
        local all all trust

        """
}
