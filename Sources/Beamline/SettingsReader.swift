// One setting from three places: flag, then environment (BEAMLINE_…), then the YAML file. Everything is read as text
// and checked here, so that a wrong value is named together with the place it came from.

import Configuration
import Foundation

struct SettingsReader {
    private let flags: [String: String]
    private let environment: ConfigReader
    private let file: ConfigReader?
    private let filePath: String?

    /// - Parameters:
    ///   - flags: values given on the command line, by setting name.
    ///   - known: every setting of any role; others in the file or the environment stop the start. So the roles of a
    ///     cluster can share a file.
    ///   - command: whose help lists them.
    init(flags: [String: String], known: Set<String>, command: String = "standalone") async throws {
        self.flags = flags
        let variables = ProcessInfo.processInfo.environment
        environment = ConfigReader(provider: EnvironmentVariablesProvider(environmentVariables: variables))
        for name in variables.keys.sorted()
        where name.hasPrefix("BEAMLINE_") && !known.contains(where: { Self.variable(for: $0) == name }) {
            throw CommandFailure("there is no setting \(name) (environment); `beamline \(command) --help` lists them")
        }

        let path = flags["config"] ?? variables["BEAMLINE_CONFIG"]
        filePath = path
        guard let path else {
            file = nil
            return
        }
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw CommandFailure("cannot read the settings file \(path) (--config)")
        }
        for key in Self.topLevelKeys(of: text) where !known.contains(key) {
            throw CommandFailure("there is no setting `\(key)` (in \(path)); `beamline \(command) --help` lists them")
        }
        do {
            let place = InMemoryProvider(values: ["filePath": ConfigValue(.string(path), isSecret: false)])
            let provider = try await FileProvider<YAMLSnapshot>(config: ConfigReader(provider: place))
            file = ConfigReader(provider: provider)
        } catch {
            throw CommandFailure(
                "the settings file \(path) is not the YAML it should be (one `name: value` per line): \(error)")
        }
    }

    static func variable(for setting: String) -> String {
        "BEAMLINE_" + setting.uppercased().replacing("-", with: "_")
    }

    /// The value as text, with the place it came from; nil when it is set nowhere. An empty variable counts as unset.
    func text(_ setting: String) throws -> (value: String, origin: String)? {
        if let value = flags[setting] { return (value, "--\(setting)") }
        let variable = Self.variable(for: setting)
        if let value = environment.string(forKey: ConfigKey(["beamline", setting])), !value.isEmpty {
            return (value, variable)
        }
        if let file, let filePath, let value = file.string(forKey: ConfigKey([setting])) {
            return (value, "`\(setting)` in \(filePath)")
        }
        return nil
    }

    /// Values with commas between them, or a list of the file; each with the place it came from.
    func list(_ setting: String) throws -> [(value: String, origin: String)] {
        if let (text, origin) = try text(setting) {
            return text.split(separator: ",", omittingEmptySubsequences: false).map {
                ($0.trimmingCharacters(in: .whitespaces), origin)
            }
        }
        guard let file, let filePath, let values = file.stringArray(forKey: ConfigKey([setting])) else { return [] }
        return values.map { ($0, "`\(setting)` in \(filePath)") }
    }

    func string(_ setting: String, default fallback: String) throws -> String { try text(setting)?.value ?? fallback }

    /// A whole number within bounds.
    func integer(_ setting: String, default fallback: Int, in range: ClosedRange<Int>) throws -> Int {
        guard let (value, origin) = try text(setting) else { return fallback }
        guard let number = Int(value), range.contains(number) else {
            throw CommandFailure(
                "\(origin) must be a whole number from \(range.lowerBound) to \(range.upperBound), not `\(value)`")
        }
        return number
    }

    /// A listener; nil for `off`.
    func address(_ setting: String, default fallback: String) throws -> ListenAddress? {
        let (value, origin) = try text(setting) ?? (fallback, "--\(setting)")
        if value == "off" { return nil }
        guard let address = ListenAddress(value) else {
            throw CommandFailure("\(origin) must be HOST:PORT (127.0.0.1:2000, [::1]:2000) or off, not `\(value)`")
        }
        return address
    }

    /// The names at the left margin: the provider does not list the keys of a file.
    private static func topLevelKeys(of yaml: String) -> [String] {
        yaml.split(whereSeparator: \.isNewline).compactMap { line in
            guard let first = line.first, first != " ", first != "#", first != "-", let colon = line.firstIndex(of: ":")
            else { return nil }
            return line[..<colon].trimmingCharacters(in: CharacterSet(charactersIn: " \"'"))
        }
    }
}
