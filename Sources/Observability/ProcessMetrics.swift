// What the kernel says of this process: resident memory, processor time, open files. Read from /proc when the metrics
// page is asked for; absent where there is no /proc.

import Glibc

func registerProcessMetrics(in registry: MetricRegistry) {
    registry.sampled("beamline_resident_bytes", "Resident memory of this process.") { residentBytes().map(Double.init) }
    registry.sampled("beamline_cpu_seconds_total", "Processor time of this process, user and system.", kind: .counter) {
        var usage = rusage()
        guard getrusage(RUSAGE_SELF.rawValue, &usage) == 0 else { return nil }
        return seconds(usage.ru_utime) + seconds(usage.ru_stime)
    }
    registry.sampled("beamline_open_files", "Open file descriptors of this process.") {
        guard let directory = opendir("/proc/self/fd") else { return nil }
        defer { closedir(directory) }
        var count = -3  // ".", ".." and the handle that reads them
        while readdir(directory) != nil { count += 1 }
        return Double(count)
    }
}

private func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }

/// Resident memory in bytes, from the second field (pages) of /proc/self/statm.
public func residentBytes() -> Int? {
    guard let file = fopen("/proc/self/statm", "r") else { return nil }
    defer { fclose(file) }
    var buffer = [UInt8](repeating: 0, count: 256)
    let length = fread(&buffer, 1, buffer.count, file)
    let fields = buffer[..<length].split(separator: UInt8(ascii: " "))
    guard fields.count > 1, let pages = Int(String(decoding: fields[1], as: UTF8.self)) else { return nil }
    return pages * Int(sysconf(Int32(_SC_PAGESIZE)))
}
