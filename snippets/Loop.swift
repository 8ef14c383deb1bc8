// Draw a bundle's golden image with Core ML: try await Loop(folder: url).draw(index: 0).
//
// NOT VERIFIED: no Swift compiler and no Apple system has seen this file. The loop, the files and the noise are those of loop.py, which
// is tested. Programs of half precision (the default of --target coreml) come to some 50 dB.
import CoreML
import CryptoKit
import Foundation

struct Manifest: Decodable {
    struct Spec: Decodable { let name: String; let shape: [Int]; let dtype: String }
    struct Contract: Decodable { let program: String; let inputs: [Spec]; let outputs: [Spec] }
    struct Program: Decodable { let name: String; let target: String; let file: String; let entry: String }
    struct File: Decodable { let sha256: String; let bytes: Int }
    let schema_version: Int
    let contracts: [Contract]
    let programs: [Program]
    let files: [String: File]
}

struct PlanHeader: Decodable { let schema_version: Int; let programs: [String] }
struct GoldenHeader: Decodable { let schema_version: Int; let seed: UInt64; let labels: [Int32] }
struct Failure: Error { let message: String }

struct Safetensors {
    let header: Data
    private let data: Data
    private let entries: [String: (dtype: String, shape: [Int], begin: Int, end: Int)]

    init(_ bytes: Data) throws {
        let size = bytes.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
        let text = bytes.subdata(in: 8 ..< 8 + size)
        guard let all = try JSONSerialization.jsonObject(with: text) as? [String: [String: Any]],
              let own = all["__metadata__"]?["edge_sd"] as? String else { throw Failure(message: "not a file of edge-sd") }
        header = Data(own.utf8)
        data = bytes.subdata(in: 8 + size ..< bytes.count)
        var found: [String: (dtype: String, shape: [Int], begin: Int, end: Int)] = [:]
        for (name, entry) in all where name != "__metadata__" {
            guard let dtype = entry["dtype"] as? String, let shape = entry["shape"] as? [Int],
                  let places = entry["data_offsets"] as? [Int] else { throw Failure(message: "\(name) has no place") }
            found[name] = (dtype, shape, places[0], places[1])
        }
        entries = found
    }

    func has(_ name: String) -> Bool { entries[name] != nil }
    func shape(_ name: String) -> [Int] { entries[name]!.shape }

    // The machine is little-endian, as the file is; subdata is copied, and so aligned.
    func values<T>(_ name: String, _: T.Type) -> [T] {
        let entry = entries[name]!
        return data.subdata(in: entry.begin ..< entry.end).withUnsafeBytes { Array($0.bindMemory(to: T.self)) }
    }
}

final class Program {
    private let model: MLModel
    private let contract: Manifest.Contract

    init?(folder: URL, manifest: Manifest, name: String) async throws {
        guard let found = manifest.programs.first(where: { $0.target == "coreml" && $0.name == name }),
              let contract = manifest.contracts.first(where: { $0.program == name }) else { return nil }
        let configuration = MLModelConfiguration()
        if !found.entry.isEmpty {
            guard #available(iOS 18, macOS 15, *) else { throw Failure(message: "several functions need iOS 18") }
            configuration.functionName = found.entry
        }
        let compiled = try await MLModel.compileModel(at: folder.appendingPathComponent(found.file))
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        self.contract = contract
    }

    func callAsFunction(_ inputs: [[Float]]) throws -> [Float] {
        var features: [String: MLMultiArray] = [:]
        for (spec, values) in zip(contract.inputs, inputs) {
            let type: MLMultiArrayDataType = spec.dtype == "int32" ? .int32 : .float32
            let array = try MLMultiArray(shape: spec.shape.map { NSNumber(value: $0) }, dataType: type)
            for (i, value) in values.enumerated() { array[i] = NSNumber(value: value) }
            features[spec.name] = array
        }
        let result = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        guard let out = result.featureValue(for: contract.outputs[0].name)?.multiArrayValue else {
            throw Failure(message: "\(contract.program) returned nothing")
        }
        return (0 ..< out.count).map { out[$0].floatValue }
    }
}

struct Loop {
    let folder: URL

    func sample(_ plan: Safetensors, program: ([Float], Int) throws -> [Float], noise: (Int) -> [Float]) rethrows -> [Float] {
        func column(_ name: String) -> [Float] { plan.values(name, Double.self).map(Float.init) }
        let (p, q, u, a, next, c) = (column("p"), column("q"), column("u"), column("a"), column("a_next"), column("c"))
        let (b, bNext, history) = (column("b"), column("b_next"), plan.shape("b")[1])
        let start = plan.has("start") ? column("start")[0] : 1
        var x = noise(-1).map { start * $0 }
        var base = x
        var memory: [[Float]] = [] // newest first
        for row in p.indices {
            let e = try program(x, row)
            memory.insert(x.indices.map { p[row] * x[$0] + q[row] * e[$0] }, at: 0)
            if memory.count > history { memory.removeLast() }
            base = x.indices.map { i in
                memory.indices.reduce(u[row] * x[i] + a[row] * base[i]) { $0 + b[row * history + $1] * memory[$1][i] }
            }
            let z = c[row] != 0 ? noise(row) : []
            x = base.indices.map { i in
                let sum = memory.indices.reduce(next[row] * base[i]) { $0 + bNext[row * history + $1] * memory[$1][i] }
                return c[row] != 0 ? sum + c[row] * z[i] : sum
            }
        }
        return x
    }

    func draw(index: Int) async throws -> (image: [Float], golden: [Float], shape: [Int]) {
        let manifest = try JSONDecoder().decode(Manifest.self, from: Data(contentsOf: folder.appendingPathComponent("manifest.json")))
        try expect("manifest.json", manifest.schema_version, 3)
        let plan = try Safetensors(read("plan.safetensors", manifest))
        let header = try JSONDecoder().decode(PlanHeader.self, from: plan.header)
        try expect("plan.safetensors", header.schema_version, 1)
        let golden = try Safetensors(read("golden.safetensors", manifest))
        let goldenHeader = try JSONDecoder().decode(GoldenHeader.self, from: golden.header)
        try expect("golden.safetensors", goldenHeader.schema_version, 2)

        var programs: [Program] = []
        for name in header.programs {
            guard let program = try await Program(folder: folder, manifest: manifest, name: name) else {
                throw Failure(message: "the bundle has no \(name) for coreml")
            }
            programs.append(program)
        }
        let decoder = try await Program(folder: folder, manifest: manifest, name: "decoder")
        let times = plan.values("timestep", Double.self), which = plan.values("program", Int64.self)
        var rows: [[Float]] = []
        if goldenHeader.labels.isEmpty {
            let features = plan.values("features", Float.self), width = features.count / times.count
            rows = times.indices.map { Array(features[$0 * width ..< ($0 + 1) * width]) }
        } else if let temporal = try await Program(folder: folder, manifest: manifest, name: "temporal") {
            rows = try times.map { try temporal([[Float($0)], [Float(goldenHeader.labels[index])]]) }
        }
        let count = golden.shape("\(index).final").reduce(1, *)
        let last = try sample(plan, program: { try programs[Int(which[$1])]([$0, rows[$1]]) },
                              noise: { gaussian(seed: goldenHeader.seed, index: UInt64(index), row: $0, count: count) })
        let name = "\(index)." + (decoder == nil ? "final" : "image")
        return (try decoder?([last]) ?? last, golden.values(name, Float.self), golden.shape(name))
    }

    // One of the bundle's files, as it was exported.
    private func read(_ name: String, _ manifest: Manifest) throws -> Data {
        let data = try Data(contentsOf: folder.appendingPathComponent(name))
        let hash = SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
        guard hash == manifest.files[name]?.sha256 else { throw Failure(message: "\(name) has changed") }
        return data
    }

    private func expect(_ name: String, _ found: Int, _ known: Int) throws {
        guard found == known else { throw Failure(message: "\(name) has schema version \(found), this reads \(known)") }
    }
}

// Philox-4×32-10 and Box–Muller, to the bit what the golden trajectories start from.
func gaussian(seed: UInt64, index: UInt64, row: Int, count: Int) -> [Float] {
    var values: [Float] = []
    for block in 0 ..< (count + 3) / 4 {
        var c = [UInt32(block), UInt32(row + 1), UInt32(truncatingIfNeeded: index), UInt32(index >> 32)]
        var k0 = UInt32(truncatingIfNeeded: seed), k1 = UInt32(seed >> 32)
        for _ in 0 ..< 10 {
            let p0 = c[0].multipliedFullWidth(by: 0xD251_1F53), p1 = c[2].multipliedFullWidth(by: 0xCD9E_8D57)
            c = [p1.high ^ c[1] ^ k0, p1.low, p0.high ^ c[3] ^ k1, p0.low]
            k0 = k0 &+ 0x9E37_79B9
            k1 = k1 &+ 0xBB67_AE85
        }
        values += boxMuller(c[0], c[1]) + boxMuller(c[2], c[3])
    }
    return Array(values.prefix(count))
}

private func factorial(_ n: Int) -> Double { n < 2 ? 1 : Double(n) * factorial(n - 1) }
private let lnSeries = (0 ... 10).map { 1 / Double(2 * $0 + 1) }
private let sinSeries = (0 ... 8).map { ($0 % 2 == 0 ? 1 : -1) / factorial(2 * $0 + 1) }
private let cosSeries = (0 ... 9).map { ($0 % 2 == 0 ? 1 : -1) / factorial(2 * $0) }

private func horner(_ x: Double, _ coefficients: [Double]) -> Double {
    coefficients.reversed().reduce(0) { $0 * x + $1 }
}

private func boxMuller(_ w0: UInt32, _ w1: UInt32) -> [Float] {
    var m = (2 * Double(w0) + 1) / 8_589_934_592, e = 0.0 // 2³³
    while m < 0.7071067811865476 { m *= 2; e -= 1 }
    let s = (m - 1) / (m + 1), halfPi = 1.5707963267948966
    let radius = (-2 * (e * 0.6931471805599453 + 2 * s * horner(s * s, lnSeries))).squareRoot()
    let t = (Double(w1 & 0x3FFF_FFFF) + 0.5) / 1_073_741_824 * halfPi - halfPi / 2 // 2³⁰
    let sin = t * horner(t * t, sinSeries), cos = horner(t * t, cosSeries), turn = w1 >> 30
    let (x, y) = turn % 2 == 1 ? (sin, cos) : (cos, sin)
    return [Float(radius * (turn == 1 || turn == 2 ? -x : x)), Float(radius * (turn >= 2 ? -y : y))]
}
