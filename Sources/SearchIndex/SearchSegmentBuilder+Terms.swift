// Terms of a trace, taken from its forest. Complete: every way in which a trace can match a leaf of a search plan
// (`SearchPlan`) has its term, flag or step here. More than that does no harm.

import Segments
import TraceAssembly

/// Fields whose hashes begin the same for every trace.
private enum Fields {
    static let user = SearchField(.user)
    static let zone = SearchField(.zone)
    static let instanceID = SearchField(.instanceID)
    static let resourceARN = SearchField(.resourceARN)
    static let accountID = SearchField(.accountID)
    static let url = SearchField(.url)
    static let method = SearchField(.method)
    static let userAgent = SearchField(.userAgent)
    static let clientIP = SearchField(.clientIP)
    static let status = SearchField(.status)
    static let urlDigits = SearchField(.urlDigits)
    static let nodeName = SearchField(.nodeName)
    static let nodeType = SearchField(.nodeType)
    static let nodeFault = SearchField(.nodeFault)
    static let nodeError = SearchField(.nodeError)
    static let nodeThrottle = SearchField(.nodeThrottle)
    static let edge = SearchField(.edge)
    static let edgeFault = SearchField(.edgeFault)
    static let edgeError = SearchField(.edgeError)
    static let edgeThrottle = SearchField(.edgeThrottle)
}

extension SearchSegmentBuilder {
    /// Adds a trace as it is now; one without a root has no summary and is left out.
    /// - Parameters:
    ///   - version: of the trace's row that is written together with this.
    ///   - clocks: of the forest.
    public mutating func add(_ forest: Forest, version: Int, clocks: SummaryClocks) {
        guard let rootStart = clocks.rootStart, let firstReceipt = clocks.receipts.first,
            let lastReceipt = clocks.receipts.last
        else { return }
        var trace = Trace(record: SearchRecord(id: forest.trace.id, rootStart: rootStart, version: version))
        forest.trace.entities.withUnsafeBufferPointer { buffer in
            guard let entities = buffer.baseAddress else { return }
            addRoot(entities + Int(forest.root), &trace)
            addEntities(forest, entities, &trace)
        }
        addTimes(forest, &trace)
        if forest.isPartial { trace.flags |= SearchFlag.partial.bit }
        if trace.flags & (SearchFlag.faultFlag.bit | SearchFlag.errorFlag.bit) != 0 {
            addCauses(forest.rootCauses(of: .fault) + forest.rootCauses(of: .error))
        }
        traces.append(trace)
        include(
            roots: .init(first: SearchSegment.second(rootStart), last: SearchSegment.second(rootStart)),
            receipts: .init(first: SearchSegment.second(firstReceipt), last: SearchSegment.second(lastReceipt)),
            ends: clocks.ends.first.flatMap { first in
                clocks.ends.last.map { .init(first: SearchSegment.second(first), last: SearchSegment.second($0)) }
            })
    }

    private mutating func addRoot(_ root: UnsafePointer<TraceEntity>, _ trace: inout Trace) {
        let outcome = root.pointee.entity.outcome
        if outcome.isFault { trace.flags |= SearchFlag.fault.bit }
        if outcome.isError { trace.flags |= SearchFlag.error.bit }
        if outcome.isThrottle { trace.flags |= SearchFlag.throttle.bit }
        if !outcome.isFault, !outcome.isError, !outcome.isThrottle { trace.flags |= SearchFlag.ok.bit }
        if let status = root.pointee.entity.httpStatus {
            trace.flags |= SearchFlag.status.bit
            let number = Double(status)
            let term = Fields.status.term(number)
            post(term)
            if dictionary.isNew(term.rawValue) {
                dictionary.insert(.numbers(first: number, last: number), of: Fields.status.presence)
            }
        }
        guard let http = root.pointee.entity.http else { return }
        if let url = http.url {
            trace.flags |= SearchFlag.url.bit
            add(url, of: Fields.url)
            addDigits(url)
        }
        if let method = http.method {
            trace.flags |= SearchFlag.method.bit
            add(method, of: Fields.method)
        }
        if let userAgent = http.userAgent {
            trace.flags |= SearchFlag.userAgent.bit
            add(userAgent, of: Fields.userAgent)
        }
        if let clientIP = http.clientIP {
            trace.flags |= SearchFlag.clientIP.bit
            add(clientIP, of: Fields.clientIP)
        }
    }

    private mutating func addEntities(_ forest: Forest, _ entities: UnsafePointer<TraceEntity>, _ trace: inout Trace) {
        var annotationCount = 0
        var hasOwnAccount = false
        for index in 0..<forest.count {
            let owner = Int(forest.owner[index])
            guard owner >= 0 else { continue }
            let entity = entities + index
            annotationCount += entity.pointee.entity.annotations.count
            if entity.pointee.entity.hasFaultFlag { trace.flags |= SearchFlag.faultFlag.bit }
            if entity.pointee.entity.hasErrorFlag { trace.flags |= SearchFlag.errorFlag.bit }
            let node: String
            if owner == index {
                node = entity.pointee.entity.name
                if let type = entity.pointee.entity.origin { post(Fields.nodeType.term(type)) }
                addSegment(entity, &trace)
                let above = Int(forest.parent[index])
                if above >= 0 {
                    let isCall = entities[above].entity.kind == .subsegment
                    addEdge(
                        from: entities[Int(forest.owner[above])].entity.name, to: node,
                        outcome: isCall ? entities[above].entity.outcome : entity.pointee.entity.outcome)
                }
            } else if entity.pointee.entity.namespace != .none, entity.pointee.entity.kind == .subsegment,
                !forest.isResolvedCall(Int32(index))
            {
                trace.flags |= SearchFlag.inferred.bit
                let inferred = InferredService(
                    name: entity.pointee.entity.name, namespace: entity.pointee.entity.namespace,
                    awsCall: entity.pointee.entity.awsCall)
                node = inferred.name
                post(Fields.nodeType.term(inferred.type))
                addEdge(from: entities[owner].entity.name, to: node, outcome: entity.pointee.entity.outcome)
            } else {
                continue
            }
            post(Fields.nodeName.term(node))
            let outcome = entity.pointee.entity.outcome
            if outcome.isFault { post(node, of: Fields.nodeFault) }
            if outcome.isError { post(node, of: Fields.nodeError) }
            if outcome.isThrottle { post(node, of: Fields.nodeThrottle) }
            if let account = entity.pointee.entity.accountID {
                add(account, of: Fields.accountID)
            } else {
                hasOwnAccount = true
            }
        }
        if hasOwnAccount { add(forest.trace.account.description, of: Fields.accountID) }
        if annotationCount > 0 { addAnnotations(forest, entities, count: annotationCount) }
    }

    private mutating func addSegment(_ entity: UnsafePointer<TraceEntity>, _ trace: inout Trace) {
        if let user = entity.pointee.entity.user {
            trace.flags |= SearchFlag.user.bit
            add(user, of: Fields.user)
        }
        if let arn = entity.pointee.entity.resourceARN { addMarked(arn, of: Fields.resourceARN) }
        if let id = entity.pointee.entity.instanceID { addMarked(id, of: Fields.instanceID) }
        if let zone = entity.pointee.entity.availabilityZone { addMarked(zone, of: Fields.zone) }
    }

    private mutating func post(_ node: String, of field: SearchField) {
        post(field.term(node))
        post(field.presence)
    }

    private mutating func addEdge(from source: String, to destination: String, outcome: Outcome) {
        post(Fields.edge.term(source, destination))
        if outcome.isFault { post(Fields.edgeFault.term(source, destination)) }
        if outcome.isError { post(Fields.edgeError.term(source, destination)) }
        if outcome.isThrottle { post(Fields.edgeThrottle.term(source, destination)) }
    }

    private mutating func addMarked(_ text: String, of field: SearchField) {
        post(field.presence)
        add(text, of: field)
    }

    /// A text as it is and as its template.
    private mutating func add(_ text: String, of field: SearchField) {
        var text = text
        text.withUTF8 { bytes in
            let raw = UnsafeRawBufferPointer(bytes)
            let hash = Hash.of(raw, seed: field.seed)
            post(SearchTerm(hash: hash))
            guard TextTemplate.make(raw, into: &scratch) else {
                if dictionary.isNew(hash) { dictionary.insert(.template(Array(raw)), of: field.presence) }
                return
            }
            let template = scratch.withUnsafeBytes { Hash.of($0, seed: field.seed) }
            post(SearchTerm(hash: template))
            if dictionary.isNew(template) { dictionary.insert(.template(scratch), of: field.presence) }
        }
    }

    private mutating func addDigits(_ url: String) {
        var url = url
        url.withUTF8 { bytes in
            TextTemplate.forEachThreeDigits(UnsafeRawBufferPointer(bytes)) { post(Fields.urlDigits.term(Double($0))) }
        }
    }

    private mutating func addAnnotations(_ forest: Forest, _ entities: UnsafePointer<TraceEntity>, count: Int) {
        // With few annotations none can be beyond the limit, and repetitions do no harm.
        guard count > Forest.indexedPairsPerTrace else {
            for index in 0..<forest.count where forest.owner[index] >= 0 {
                for annotation in entities[index].entity.annotations {
                    if case .string(let text) = annotation.value, text.utf8.count <= IndexedValue.indexedCodePoints {
                        addAnnotation(annotation.key, text: text)
                    } else {
                        addAnnotation(annotation.key, IndexedValue(annotation.value))
                    }
                }
            }
            return
        }
        for annotation in forest.indexedAnnotations() { addAnnotation(annotation.key.value, annotation.value) }
    }

    private mutating func addAnnotation(_ key: String, _ value: IndexedValue) {
        switch value {
        case .string(let text):
            addAnnotation(key, text: text.value)
        case .number(let number):
            post(SearchField(.annotation, key: key).presence)
            let field = SearchField(.annotationNumber, key: key)
            post(field.term(number))
            let range = NumberRange.around(number)
            let term = SearchField(.annotationRange, key: key).term(range.first)
            post(term)
            if dictionary.isNew(term.rawValue) {
                dictionary.insert(.numbers(first: range.first, last: range.last), of: field.presence)
            }
        case .bool(let flag):
            post(SearchField(.annotation, key: key).presence)
            post(SearchField(.annotationFlag, key: key).term(flag))
        }
    }

    private mutating func addAnnotation(_ key: String, text: String) {
        post(SearchField(.annotation, key: key).presence)
        add(text, of: SearchField(.annotationText, key: key))
    }

    private mutating func addTimes(_ forest: Forest, _ trace: inout Trace) {
        if let time = forest.responseTime(of: forest.root) {
            trace.responseStep = TimeStep.of(millis: roundedMillis(time))
        }
        if !forest.hasOpenEntity, let time = forest.traceDuration {
            trace.durationStep = TimeStep.of(millis: roundedMillis(time))
        }
    }

    private mutating func addCauses(_ causes: [RootCause]) {
        for cause in causes {
            for service in cause.services {
                post(SearchField(.causeService).term(service.service.name.value))
                for entity in service.path {
                    post(SearchField(.causeEntity).term(entity.name))
                    for exception in entity.exceptions {
                        if let name = exception.name { post(SearchField(.causeException).term(name)) }
                    }
                }
            }
        }
    }
}
