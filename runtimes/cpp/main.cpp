// edgesd-runner: a bundle's ExecuTorch programs on a device without Python.
//
//   edgesd-runner serve --program FILE:METHOD [--program …] [--threads N]
//   edgesd-runner prove JOB --header JSON|--header-file FILE --output OUT.safetensors [--temporal FILE:METHOD] [--label N …]
//   edgesd-runner measure JOB [--least-warmup N] [--most-warmup N] [--iterations N] [--images N] [--ceiling 0|1] [--minutes M] …
//   edgesd-runner noise SEED INDEX ROW COUNT
//
// JOB is --plan PLAN --golden GOLDEN --program FILE:METHOD … [--decoder FILE:METHOD] --seed S [--threads N] [--watch 1]; with
// --watch the runner ends when its standard input does: whoever started it has gone.
//
// Exit codes: 0 done, 1 a failure that is named on standard error, 2 wrong arguments.
#include <csignal>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <thread>

#include "frames.h"
#include "measure.h"
#include "prove.h"

namespace {

constexpr const char* kUsage =
    "usage: edgesd-runner serve --program FILE:METHOD [--program ...] [--threads N]\n"
    "       edgesd-runner prove JOB --header JSON|--header-file FILE --output OUT [--temporal FILE:METHOD] [--label N ...]\n"
    "       edgesd-runner measure JOB [--least-warmup N] [--most-warmup N] [--iterations N] [--images N] [--ceiling 0|1]\n"
    "                                 [--minutes M] [--most-seconds S]\n"
    "       JOB: --plan PLAN --golden GOLDEN --program FILE:METHOD [--program ...] [--decoder FILE:METHOD] --seed S [--threads N]\n"
    "            [--watch 1]\n"
    "       edgesd-runner noise SEED INDEX ROW COUNT\n";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void say(const char* text) {
  if (write(2, text, std::strlen(text)) < 0) return;  // nobody listens; there is nobody to tell
}

// ExecuTorch checks less of a program than a damaged one can break, and ends the process itself where it checks.
void crashed(int number) {
  say("edgesd-runner: ");
  say(number == SIGABRT ? "SIGABRT" : number == SIGBUS ? "SIGBUS" : number == SIGFPE ? "SIGFPE" : number == SIGILL ? "SIGILL" : "SIGSEGV");
  say(" while ");
  say(current_task);
  say(": most likely its file is damaged, or of another version of ExecuTorch\n");
  _exit(1);
}

pid_t parent = 0;

void parent_changed(int) {
  if (getppid() != parent) _exit(1);  // the thread that started this process may end; the parent process may not
}

void prepare() {
  for (const int number : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) std::signal(number, crashed);
  std::signal(SIGPIPE, SIG_IGN);
}

// Whoever serves does so for its parent alone. (The end of requests tells too, but not in the middle of a call.)
void end_with_parent() {
#ifdef __linux__
  parent = getppid();
  struct sigaction action = {};
  action.sa_handler = parent_changed;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  prctl(PR_SET_PDEATHSIG, SIGUSR1);
#endif
}

// Standard output, kept for answers: what libraries print goes to standard error instead.
int take_output() {
  const int out = dup(1);
  require(out >= 0 && dup2(2, 1) >= 0, std::string("cannot redirect standard output: ") + std::strerror(errno));
  return out;
}

uint64_t unsigned_of(const std::string& text, const std::string& what, uint64_t least, uint64_t most) {
  uint64_t value = 0;
  bool good = !text.empty() && text.size() <= 20;
  for (const char c : text) {
    good = good && c >= '0' && c <= '9' && !__builtin_mul_overflow(value, uint64_t{10}, &value) &&
           !__builtin_add_overflow(value, uint64_t(c - '0'), &value);
  }
  if (!good || value < least || value > most) {
    throw Usage(what + " is a number from " + std::to_string(least) + " to " + std::to_string(most) + ", unlike " + text);
  }
  return value;
}

using Options = std::map<std::string, std::vector<std::string>>;

Options options_of(const std::vector<std::string>& words, const Options& known) {
  Options found;
  for (size_t i = 0; i < words.size(); i += 2) {
    if (!known.count(words[i])) throw Usage("unknown option " + words[i]);
    if (i + 1 == words.size()) throw Usage(words[i] + " needs a value");
    found[words[i]].push_back(words[i + 1]);
    if (words[i] != "--program" && words[i] != "--label" && found[words[i]].size() > 1) throw Usage(words[i] + " is given twice");
  }
  for (const auto& [name, needed] : known) {
    if (!needed.empty() && !found.count(name)) throw Usage(name + " is missing");
  }
  if (found.count("--threads")) set_threads(uint32_t(unsigned_of(found["--threads"][0], "--threads", 1, 1024)));
  return found;
}

const std::vector<std::string> kNeeded = {"needed"}, kOptional = {};

double real_of(const std::string& text, const std::string& what, double most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(value >= 0 && value <= most)) throw Usage(what + " is a number from 0 on, unlike " + text);
  return value;
}

void end_with_input() {
  std::thread([] {
    char byte;
    while (true) {
      const ssize_t got = read(0, &byte, 1);
      if (got == 0 || (got < 0 && errno != EINTR)) _exit(1);
    }
  }).detach();
}

// The options of a job, with those that a mode adds.
Options job_options(const std::vector<std::string>& words, Options added) {
  added.insert({{"--plan", kNeeded}, {"--golden", kNeeded}, {"--program", kNeeded}, {"--decoder", kOptional}, {"--seed", kNeeded},
                {"--threads", kOptional}, {"--watch", kOptional}});
  Options options = options_of(words, added);
  if (options.count("--watch")) end_with_input();
  return options;
}

Request request_of(Options& options) {
  Request request;
  request.plan = options["--plan"][0], request.golden = options["--golden"][0], request.programs = options["--program"];
  if (options.count("--decoder")) request.decoder = options["--decoder"][0];
  if (options.count("--temporal")) request.temporal = options["--temporal"][0];
  request.seed = unsigned_of(options["--seed"][0], "--seed", 0, UINT64_MAX);
  return request;
}

void serve(const std::vector<std::string>& words) {
  end_with_parent();
  const int out = take_output();
  const Options options = options_of(words, {{"--program", kNeeded}, {"--threads", kOptional}});
  frames::serve(options.at("--program"), 0, out);
}

void prove_(const std::vector<std::string>& words) {
  const int out = take_output();
  Options options = job_options(words, {{"--header", kOptional}, {"--header-file", kOptional}, {"--output", kNeeded},
                                        {"--temporal", kOptional}, {"--label", kOptional}});
  if (options.count("--header") == options.count("--header-file")) throw Usage("one of --header and --header-file is needed");
  std::string header;
  if (options.count("--header")) {
    header = options["--header"][0];
  } else {
    std::ifstream file(options["--header-file"][0], std::ios::binary);
    header.assign(std::istreambuf_iterator<char>(file), {});
    require(bool(file) && !header.empty(), "cannot read " + options["--header-file"][0]);
  }
  std::vector<uint64_t> labels;
  for (const std::string& label : options["--label"]) labels.push_back(unsigned_of(label, "--label", 0, INT32_MAX));
  prove::Prover prover(request_of(options), labels);
  frames::write_bytes(out, prover.run(header, options["--output"][0]) + "\n");
}

void measure_(const std::vector<std::string>& words) {
  const int out = take_output();
  Options options = job_options(words, {{"--least-warmup", kOptional}, {"--most-warmup", kOptional}, {"--iterations", kOptional},
                                        {"--images", kOptional}, {"--ceiling", kOptional}, {"--minutes", kOptional}, {"--most-seconds", kOptional}});
  measure::Limits limits;
  const auto whole = [&](const std::string& name, uint64_t& value, uint64_t least) {
    if (options.count(name)) value = unsigned_of(options[name][0], name, least, 1'000'000'000);
  };
  whole("--least-warmup", limits.least_warmup, 1), whole("--most-warmup", limits.most_warmup, 1);
  whole("--iterations", limits.iterations, 1), whole("--images", limits.images, 0), whole("--ceiling", limits.ceiling, 0);
  if (options.count("--minutes")) limits.minutes = real_of(options["--minutes"][0], "--minutes", 24 * 60);
  if (options.count("--most-seconds")) limits.most_seconds = real_of(options["--most-seconds"][0], "--most-seconds", 1e9);
  const uint32_t threads = options.count("--threads") ? uint32_t(unsigned_of(options["--threads"][0], "--threads", 1, 1024)) : 1;
  set_threads(threads);
  frames::write_bytes(out, measure::Measurer(request_of(options), limits, threads).run() + "\n");
}

void noise_(const std::vector<std::string>& words) {
  if (words.size() != 4) throw Usage("noise takes SEED INDEX ROW COUNT");
  const bool start = words[2] == "-1";
  const int64_t row = start ? -1 : int64_t(unsigned_of(words[2], "ROW", 0, UINT32_MAX - 1));
  const size_t count = size_t(unsigned_of(words[3], "COUNT", 0, uint64_t{1} << 32));
  const auto seed = unsigned_of(words[0], "SEED", 0, UINT64_MAX), index = unsigned_of(words[1], "INDEX", 0, UINT64_MAX);
  for (const float value : noise::gaussian(seed, index, row, count)) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    std::printf("%08x\n", bits);
  }
}

}  // namespace

int main(int argc, char** argv) {
  prepare();
  const std::string mode = argc > 1 ? argv[1] : "";
  const std::vector<std::string> words(argv + std::min(argc, 2), argv + argc);
  try {
    if (mode == "serve") serve(words);
    else if (mode == "prove") prove_(words);
    else if (mode == "measure") measure_(words);
    else if (mode == "noise") noise_(words);
    else throw Usage(mode.empty() ? "say what to do" : "unknown mode " + mode);
  } catch (const Usage& error) {
    std::fprintf(stderr, "edgesd-runner: %s\n%s", error.what(), kUsage);
    return 2;
  } catch (const Failure& error) {
    std::fprintf(stderr, "edgesd-runner: %s\n", error.what());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "edgesd-runner: out of memory while %s\n", current_task);
    return 1;
  }
  return 0;
}
