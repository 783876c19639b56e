/* Tests every function of ka.hpp, with and without exceptions. Sets values through ka.hpp, and reads them from the
 * kernel. */
#include <ka.hpp>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <fcntl.h>
#include <limits>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <ratio>
#include <string>
#include <sys/socket.h>
#include <system_error>
#include <type_traits>
#include <unistd.h>
#include <utility>

using namespace std::chrono_literals;

/* Older C libraries do not define this option of Linux 6.15. */
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44
#endif

namespace {

void check(bool good, int line, const char *what) {
    if (!good) {
        std::fprintf(stderr, "hpp.cpp:%d: %s\n", line, what);
        std::exit(1);
    }
}
#define CHECK(...) check((__VA_ARGS__), __LINE__, #__VA_ARGS__)

int option(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &size) == 0);
    return value;
}

void in_force(int fd, int on, int idle, int intvl, int cnt, int user_timeout) {
    CHECK(option(fd, SOL_SOCKET, SO_KEEPALIVE) == on);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == idle);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPINTVL) == intvl);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPCNT) == cnt);
    CHECK(option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == user_timeout);
}

/* Ignores a result that is [[nodiscard]]. */
template <class Result> void ignore(const Result &) {}

int tcp() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    return fd;
}

/* Returns a connection, and the listener that answers for its peer. */
std::pair<int, int> connection() {
    const int listener = tcp();
    sockaddr_in address{};
    socklen_t size = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto *const pointer = reinterpret_cast<sockaddr *>(&address);
    CHECK(bind(listener, pointer, size) == 0 && listen(listener, 1) == 0 && getsockname(listener, pointer, &size) == 0);
    const int client = tcp();
    CHECK(connect(client, pointer, size) == 0);
    return {client, listener};
}

/* Everything in constant expressions. */
constexpr ka::policy constant() { return ka::policy{}.idle(1min).intvl(10'000ms).cnt(5).user_timeout(ka::automatic); }
constexpr ka::policy constant_by_steps() {
    ka::policy policy;
    policy.idle(60s).intvl(10s);
    policy.cnt(5).user_timeout(ka::automatic).keepalive(true);
    return policy;
}
static_assert(constant() == constant_by_steps());
static_assert(constant().is_valid() && constant().keepalive() == true);
static_assert(ka::policy{}.keepalive(false).keepalive() == false);
static_assert(!ka::policy{}.keepalive(std::nullopt).keepalive());
static_assert(ka::policy{}.keepalive(std::optional<bool>{false}).keepalive() == false);
static_assert(ka::policy{}.user_timeout(0ms).native().user_timeout == KA_NONE);
static_assert(ka::policy{}.user_timeout(ka::none).user_timeout() == 0ms);
static_assert(ka::policy{}.user_timeout(5ms).user_timeout(std::nullopt) == ka::policy{});
static_assert(!ka::policy{}.user_timeout());
static_assert(ka::policy{}.rto_max(2s).rto_max() == 2000ms && ka::policy{}.rto_max(2s).native().rto_max == 2000);
static_assert(ka::policy{}.rto_max(ka::automatic).is_rto_max_automatic());
static_assert(!ka::policy{}.rto_max(2s).is_rto_max_automatic());
static_assert(!ka::policy{}.rto_max() && !ka::policy{}.rto_max(ka::automatic).rto_max());
static_assert(!ka::policy{}.rto_max(ka::automatic).is_automatic() && !constant().is_rto_max_automatic());
static_assert(ka::policy{}.rto_max(2s).rto_max(std::nullopt) == ka::policy{});
static_assert(ka::policy{}.rto_max(2s) != ka::policy{} && ka::policy{}.rto_max(2s) != ka::policy{}.rto_max(3s));
static_assert(constant().idle() == 60s);
static_assert(constant().intvl() == 10s);
static_assert(constant().cnt() == 5);
static_assert(constant().is_automatic() && !constant().user_timeout());
static_assert(constant() != ka::policy{} && constant() == constant());
static_assert(!std::is_copy_constructible_v<ka::reaper> && !std::is_copy_assignable_v<ka::reaper>);
static_assert(std::is_nothrow_move_constructible_v<ka::reaper> && std::is_nothrow_move_assignable_v<ka::reaper>);
static_assert(!std::is_constructible_v<ka::key, std::vector<int>>, "a key is bytes");

/* A setter of a temporary returns a value, so a reference to the result does not dangle. */
template <class Result> constexpr bool is_value = std::is_same_v<Result, ka::policy>;
template <class Result> constexpr bool is_reference = std::is_same_v<Result, ka::policy &>;
static_assert(is_value<decltype(ka::policy{}.idle(60s))>);
static_assert(is_value<decltype(ka::policy{}.intvl(60s))>);
static_assert(is_value<decltype(ka::policy{}.cnt(5))>);
static_assert(is_value<decltype(ka::policy{}.user_timeout(1ms))>);
static_assert(is_value<decltype(ka::policy{}.user_timeout(ka::none))>);
static_assert(is_value<decltype(ka::policy{}.user_timeout(ka::automatic))>);
static_assert(is_value<decltype(ka::policy{}.user_timeout(std::nullopt))>);
static_assert(is_value<decltype(ka::policy{}.rto_max(2s))>);
static_assert(is_value<decltype(ka::policy{}.rto_max(ka::automatic))>);
static_assert(is_value<decltype(ka::policy{}.rto_max(std::nullopt))>);
static_assert(is_value<decltype(ka::policy{}.keepalive(true))>);
static_assert(is_value<decltype(std::move(std::declval<ka::policy &>()).idle(60s))>);
static_assert(is_reference<decltype(std::declval<ka::policy &>().idle(60s))>);
static_assert(is_reference<decltype(std::declval<ka::policy &>().intvl(60s))>);
static_assert(is_reference<decltype(std::declval<ka::policy &>().cnt(5))>);
static_assert(is_reference<decltype(std::declval<ka::policy &>().user_timeout(1ms))>);
static_assert(is_reference<decltype(std::declval<ka::policy &>().rto_max(2s))>);
static_assert(is_reference<decltype(std::declval<ka::policy &>().keepalive(true))>);

/* Setters with an error code do not chain. */
template <class Result> constexpr bool is_nothing = std::is_void_v<Result>;
using code = std::error_code &;
static_assert(is_nothing<decltype(std::declval<ka::policy &>().idle(60s, std::declval<code>()))>);
static_assert(is_nothing<decltype(std::declval<ka::policy &>().intvl(60s, std::declval<code>()))>);
static_assert(is_nothing<decltype(std::declval<ka::policy &>().cnt(5, std::declval<code>()))>);
static_assert(is_nothing<decltype(std::declval<ka::policy &>().user_timeout(1ms, std::declval<code>()))>);
static_assert(is_nothing<decltype(std::declval<ka::policy &>().rto_max(2s, std::declval<code>()))>);

void without_exceptions() {
    std::error_code ec = std::make_error_code(std::errc::io_error);
    const int fd = tcp();

    ka::enable(fd, ka::policy{}.idle(60s).intvl(10s).cnt(5).user_timeout(90'500ms), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 90500);
    CHECK(ka::is_enabled(fd, ec) && !ec);
    ka::policy found = ka::query(fd, ec);
    CHECK(!ec && found.rto_max(std::nullopt) == ka::policy{}.idle(60s).intvl(10s).cnt(5).user_timeout(90'500ms));
    /* Values that the policy does not name stay. */
    ka::enable(fd, ka::policy{}.cnt(7), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 7, 90500);
    ka::enable(fd, ka::policy{}.user_timeout(ka::automatic), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 7, 130000);
    ka::disable(fd, ec);
    CHECK(!ec);
    in_force(fd, 0, 60, 10, 7, 130000);
    ka::apply(fd, ka::policy{}.keepalive(std::nullopt).idle(61s), ec);
    CHECK(!ec);
    in_force(fd, 0, 61, 10, 7, 130000);
    CHECK(!ka::is_enabled(fd, ec) && !ec);

    /* apply may turn keepalive off. enable turns it on, or fails. */
    const ka::policy on = ka::policy{}.idle(60s).intvl(10s).cnt(5);
    ka::apply(fd, on, ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 130000);
    for (const ka::policy &other : {ka::parse("off,idle=99", ec), ka::policy{}.keepalive(false).idle(99s),
                                    ka::policy{}.keepalive(std::nullopt).idle(99s)}) {
        ka::enable(fd, other, ec);
        CHECK(ec == std::errc::invalid_argument);
        in_force(fd, 1, 60, 10, 5, 130000);
    }
    ka::apply(fd, ka::parse("off", ec), ec);
    CHECK(!ec);
    in_force(fd, 0, 60, 10, 5, 130000);
    ka::enable(fd, ka::policy{}, ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 130000);

    /* std::nullopt keeps the user timeout. 0 ms and ka::none remove it. */
    ka::apply(fd, ka::policy{}.user_timeout(std::nullopt), ec);
    in_force(fd, 1, 60, 10, 5, 130000);
    CHECK(ka::query(fd, ec).user_timeout() == 130s);
    ka::apply(fd, ka::policy{}.user_timeout(0ms), ec);
    in_force(fd, 1, 60, 10, 5, 0);
    CHECK(ka::query(fd, ec).user_timeout() == 0ms && !ec);
    ka::apply(fd, ka::policy{}.user_timeout(1ms), ec);
    in_force(fd, 1, 60, 10, 5, 1);
    ka::apply(fd, ka::policy{}.user_timeout(ka::none), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 0);

    /* A config of C: 0 is the same as KA_KEEP. */
    ka_config config{};
    config.size = sizeof config;
    CHECK(ka::policy{config} == ka::policy{}.keepalive(std::nullopt));
    ka::apply(fd, ka::policy{config}, ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 0);
    config.keepalive = KA_OFF;
    config.cnt = 9;
    CHECK(ka::policy{config} == ka::policy{}.keepalive(false).cnt(9));
    ka::apply(fd, ka::policy{config}, ec);
    CHECK(!ec);
    in_force(fd, 0, 60, 10, 9, 0);

    CHECK(ka::get_status(fd, ec).state == TCP_CLOSE && !ec);
    CHECK(ka::defaults(ec).keepalive() == false && !ec);
    const ka::policy before = on;

    /* Errors of the library. */
    ka::enable(-1, before, ec);
    CHECK(ec == std::errc::bad_file_descriptor && ec.category() == std::generic_category());
    ec.clear();
    ka::disable(-1, ec);
    CHECK(ec == std::errc::bad_file_descriptor);
    const int file = open("/dev/null", O_RDONLY);
    CHECK(!ka::is_enabled(file, ec) && ec == std::errc::not_a_socket);
    close(file);
    ignore(ka::query(-1, ec));
    CHECK(ec == std::errc::bad_file_descriptor);
    ignore(ka::get_status(-1, ec));
    CHECK(ec == std::errc::bad_file_descriptor);
    CHECK(!ka::probe(-1, 1s, ec) && ec == std::errc::bad_file_descriptor);
    CHECK(!ka::probe(fd, 1s, ec) && ec == std::errc::not_connected);
    for (const auto wrong : {std::chrono::duration<double>{-0.001}, std::chrono::duration<double>{0.0015},
                             std::chrono::duration<double>{std::chrono::milliseconds{2147483648}}})
        CHECK(!ka::probe(fd, wrong, ec) && ec == std::errc::invalid_argument);
    close(fd);
    const auto [client, listener] = connection();
    CHECK(ka::probe(client, 5s, ec) && !ec && ka::probe(client, 0ms, ec) && !ec);
    usleep(1200000);
    CHECK(!ka::probe(client, 0ms, ec) && !ec);
    ec = std::make_error_code(std::errc::invalid_argument);
    CHECK(ka::probe(client, 5s, ec) && !ec);
    close(client);
    close(listener);

    CHECK(ka::parse("60,10,5", ec) == before && !ec);
    ignore(ka::parse("60", ec));
    CHECK(ec == std::errc::invalid_argument);
    ignore(ka::parse(std::string("60,10,5\0,9", 10), ec));
    CHECK(ec == std::errc::invalid_argument);
    ignore(ka::parse("32768,1,1", ec));
    CHECK(ec == std::errc::result_out_of_range);
    CHECK(ka::format(before, ec) == "idle=60,intvl=10,cnt=5" && !ec);
    CHECK(ka::format(ka::policy{ka_config{}}, ec).empty() && ec == std::errc::invalid_argument);

    CHECK(ka::plan_path(350s, ec) == ka::policy{}.idle(280s).intvl(30s).cnt(5) && !ec);
    CHECK(ka::plan_preset("aws-nlb", ec) == ka::plan_path(350s, ec) && !ec);
    const ka::policy plan = ka::plan_detect(30s, ec);
    CHECK(!ec && ka::detect_time(plan, ec).worst <= 30s && !ec && ka::detect_time(plan, ec).typical > 20s);
    ignore(ka::plan_detect(1s, ec));
    CHECK(ec == std::errc::result_out_of_range);
    ignore(ka::plan_detect(30s + 1us, ec));
    CHECK(ec == std::errc::invalid_argument);
    ignore(ka::plan_path(1500ms, ec));
    CHECK(ec == std::errc::invalid_argument);
    ignore(ka::plan_path(std::chrono::hours::max(), ec));
    CHECK(ec == std::errc::invalid_argument);
    ignore(ka::plan_preset("no-such", ec));
    CHECK(ec == std::errc::no_such_file_or_directory);
    ignore(ka::detect_time(ka::policy{}, ec));
    CHECK(ec == std::errc::invalid_argument);
    CHECK(std::string(ka::version()) == KA_VERSION);

    const ka::reaper::clock::time_point start = ka::reaper::clock::now();
    ka::reaper reaper{30s, ec};
    CHECK(!ec && reaper.empty() && !reaper.next(start));
    reaper.touch(5, start, ec);
    reaper.touch(6, start + 10s, ec);
    CHECK(!ec && reaper.size() == 2 && reaper.next(start) == 20s);
    reaper.touch(-1, start, ec);
    CHECK(ec == std::errc::bad_file_descriptor);
    ka::reaper moved = std::move(reaper);
    CHECK(moved.size() == 2);
    int fds[4];
    CHECK(moved.expired(fds, 4, start + 31s, ec) == 1 && !ec && fds[0] == 5);
    CHECK(moved.forget(6) && !moved.forget(6) && moved.empty());
    moved = ka::reaper{1500us, ec};
    CHECK(ec == std::errc::invalid_argument);
    moved.touch(5, start, ec);
    CHECK(ec == std::errc::invalid_argument && moved.empty() && moved.native_handle() == nullptr);
    ka::reaper{0s, ec};
    CHECK(ec == std::errc::invalid_argument);

    const std::string key = "sixteen bytes, or more";
    const ka::beat::nonce nonce = ka::beat::make_nonce(ec);
    CHECK(!ec && nonce != ka::beat::nonce{});
    const ka::beat beat{7, 1};
    const ka::beat::frame frame = beat.sign(key, nonce, ec);
    CHECK(!ec && ka::beat::client_of(frame, ec) == 7 && !ec);
    const ka::beat heard = ka::beat::verify(key, nonce, 0, frame, ec);
    CHECK(!ec && heard.client == 7 && heard.sequence == 1);
    ignore(ka::beat::verify(key, nonce, 1, frame, ec));
    CHECK(ec.value() == ESTALE);
    ignore(ka::beat::verify(std::string(key.rbegin(), key.rend()), nonce, 0, frame, ec));
    CHECK(ec == std::errc::bad_message);
    ignore(beat.sign(std::vector<unsigned char>(15), nonce, ec));
    CHECK(ec == std::errc::invalid_argument);
    ignore(ka::beat::client_of(ka::beat::frame{}, ec));
    CHECK(ec == std::errc::bad_message);
}

/* rto_max sets TCP_RTO_MAX_MS, and data_time computes its effect. Before Linux 6.15 no socket has the option. */
void retransmissions() {
    std::error_code ec;
    const int fd = tcp();
    int value = 0;
    socklen_t size = sizeof value;
    const ka::policy policy = ka::policy{}.idle(60s).intvl(10s).cnt(5).rto_max(2s);
    if (getsockopt(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, &value, &size) == 0) {
        CHECK(ka::query(fd, ec).rto_max() == std::chrono::milliseconds{value} && !ec);
        ka::enable(fd, policy, ec);
        CHECK(!ec);
        in_force(fd, 1, 60, 10, 5, 0);
        CHECK(option(fd, IPPROTO_TCP, TCP_RTO_MAX_MS) == 2000);
        CHECK(ka::query(fd, ec).rto_max() == 2s && !ec);
        ka::apply(fd, ka::policy{}.rto_max(std::nullopt), ec);
        CHECK(!ec && option(fd, IPPROTO_TCP, TCP_RTO_MAX_MS) == 2000);
        ka::apply(fd, ka::policy{}.rto_max(ka::automatic), ec);
        CHECK(!ec);
        /* The largest value whose time is at most idle + intvl * cnt. The kernel rounds it up to its tick. */
        const std::chrono::milliseconds automatic{option(fd, IPPROTO_TCP, TCP_RTO_MAX_MS)};
        const auto typical = [&](std::chrono::milliseconds rto_max) {
            return ka::data_time(ka::policy{}.rto_max(rto_max), ec).typical;
        };
        CHECK(automatic < 1010ms || (typical(automatic - 10ms) <= 110s && !ec));
        CHECK(automatic == 120s || (typical(automatic + 1ms) > 110s && !ec));
    } else {
        ka::apply(fd, policy, ec);
        CHECK(ec == std::errc::operation_not_supported && !ka::query(fd, ec).rto_max() && !ec);
    }
    close(fd);
    const ka::detection time = ka::data_time(policy, ec);
    CHECK(!ec && time.worst == time.typical + 2s);
    CHECK(ka::data_time(ka::parse("rto_max=2s", ec), ec).typical == time.typical && !ec);
    /* A user timeout replaces the retransmissions, but the kernel checks it only when it retransmits. */
    const ka::detection limited = ka::data_time(ka::policy{policy}.user_timeout(30s), ec);
    CHECK(!ec && limited.typical == 30s && limited.worst == 32s);
    ignore(ka::data_time(ka::policy{}.rto_max(ka::automatic), ec));
    CHECK(ec == std::errc::invalid_argument);
}

/* A setter with an error code reports a bad value, and makes the policy invalid. */
void bad_values() {
    std::error_code ec;
    const ka::policy before = ka::policy{}.idle(60s).intvl(10s).cnt(5);
    const auto rejected = [&](auto set) {
        ka::policy policy = before;
        ec.clear();
        set(policy);
        return ec == std::errc::invalid_argument && !policy.is_valid() && policy != before;
    };
    CHECK(rejected([&](ka::policy &p) { p.idle(1500ms, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(1ns, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(0s, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(-1s, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(-2s, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(32768s, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::hours::max(), ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::hours::min(), ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::nanoseconds::max(), ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::duration<std::uint64_t, std::exa>::max(), ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::duration<std::uint64_t, std::atto>::max(), ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::duration<double>{1.5}, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::duration<double>{1e300}, ec); }));
    CHECK(rejected([&](ka::policy &p) {
        p.idle(std::chrono::duration<double>{std::numeric_limits<double>::quiet_NaN()}, ec);
    }));
    CHECK(rejected([&](ka::policy &p) {
        p.idle(std::chrono::duration<float>{-std::numeric_limits<float>::infinity()}, ec);
    }));
    CHECK(rejected([&](ka::policy &p) { p.idle(std::chrono::duration<int, std::ratio<3, 2>>{3}, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.intvl(2500us, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.intvl(10h, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.cnt(0, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.cnt(128, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.cnt(-1, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.cnt(0x1'0000'0005, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.user_timeout(1us, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.user_timeout(-1ms, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.user_timeout(-3ms, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.user_timeout(25 * 24h, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.rto_max(999ms, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.rto_max(120'001ms, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.rto_max(1500us, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.rto_max(0s, ec); }));
    CHECK(rejected([&](ka::policy &p) { p.rto_max(-2s, ec); }));

    ka::policy policy;
    const auto accepted = [&](auto set) {
        ec = std::make_error_code(std::errc::io_error);
        set();
        return !ec;
    };
    CHECK(accepted([&] { policy.idle(std::chrono::duration<double>{90}, ec); }) && policy.idle() == 90s);
    CHECK(accepted([&] { policy.intvl(32767s, ec); }) && policy.intvl() == 32767s);
    CHECK(accepted([&] { policy.cnt(127, ec); }) && policy.cnt() == 127);
    CHECK(accepted([&] { policy.user_timeout(0s, ec); }) && policy.user_timeout() == 0ms);
    CHECK(accepted([&] { policy.rto_max(1s, ec); }) && policy.rto_max() == 1000ms);
    CHECK(accepted([&] { policy.rto_max(2min, ec); }) && policy.rto_max() == 120s);
    CHECK(accepted([&] { policy.idle(std::chrono::duration<short, std::ratio<60>>{2}, ec); }));
    CHECK(policy.idle() == 120s);
    CHECK(accepted([&] { policy.idle(std::chrono::duration<std::uint8_t>{9}, ec); }) && policy.idle() == 9s);
    CHECK(accepted([&] { policy.idle(std::chrono::duration<int, std::ratio<3, 2>>{4}, ec); }));
    CHECK(policy.idle() == 6s);
}

/* The policy of a failed call is invalid, and stays so. A program that ignores the error does not turn keepalive on. */
void invalid_policies() {
    std::error_code ec;
    const int fd = tcp();
    ka_config longer = KA_CONFIG_INIT;
    longer.size += 4;
    longer.keepalive = KA_ON;
    ka::policy bad_idle;
    bad_idle.idle(86400s, ec);
    ka::policy bad_cnt;
    bad_cnt.cnt(0, ec);
    for (const ka::policy &failed :
         {ka::plan_preset("aws-nblb", ec), ka::plan_preset(nullptr, ec), ka::parse("x", ec), ka::parse("60,10,128", ec),
          ka::parse(std::string("60,10,5\0", 8), ec), ka::query(-1, ec), ka::plan_path(1s, ec),
          ka::plan_path(1500ms, ec), ka::plan_detect(1ms, ec), ka::plan_detect(1us, ec), ka::policy{ka_config{}},
          ka::policy{longer}, bad_idle, bad_cnt}) {
        CHECK(!failed.is_valid() && failed != ka::policy{} && failed == ka::policy{ka_config{}});
        CHECK(!failed.keepalive() && !failed.idle() && !failed.intvl() && !failed.cnt() && !failed.user_timeout());
        CHECK(!failed.rto_max());
        ka::policy later = failed;
        later.idle(60s).intvl(10s).cnt(5).user_timeout(1s).user_timeout(ka::automatic).keepalive(true);
        later.user_timeout(ka::none).user_timeout(std::nullopt);
        later.rto_max(2s).rto_max(ka::automatic).rto_max(std::nullopt);
        const auto rejected = [&](auto set) {
            ec.clear();
            set();
            return ec == std::errc::invalid_argument;
        };
        CHECK(rejected([&] { later.idle(60s, ec); }) && rejected([&] { later.intvl(60s, ec); }));
        CHECK(rejected([&] { later.cnt(5, ec); }) && rejected([&] { later.user_timeout(60s, ec); }));
        CHECK(rejected([&] { later.rto_max(2s, ec); }));
        const ka::policy temporary = ka::policy{failed}.keepalive(true).idle(60s).intvl(10s).cnt(5);
        for (const ka::policy &policy : {failed, later, temporary}) {
            CHECK(!policy.is_valid());
            CHECK(rejected([&] { ka::apply(fd, policy, ec); }));
            CHECK(rejected([&] { ka::enable(fd, policy, ec); }));
            CHECK(rejected([&] { ka::apply(-1, policy, ec); }) && rejected([&] { ka::enable(-1, policy, ec); }));
            CHECK(rejected([&] { ignore(ka::format(policy, ec)); }));
            CHECK(rejected([&] { ignore(ka::detect_time(policy, ec)); }));
            CHECK(rejected([&] { ignore(ka::data_time(policy, ec)); }));
            CHECK(ka_apply(fd, &policy.native()) == -1 && errno == EINVAL);
        }
        CHECK(option(fd, SOL_SOCKET, SO_KEEPALIVE) == 0);
        later = ka::policy{}.idle(60s);
        CHECK(later.is_valid());
    }
    const ka::policy defaults = ka::defaults(ec);
    CHECK(!ec && defaults.is_valid());
    close(fd);
}

/* A reference to the result of a chain of temporaries keeps the result alive. AddressSanitizer watches this. */
void references_to_temporaries() {
    std::error_code ec;
    const int fd = tcp();
    const ka::policy &policy = ka::policy{}.idle(60s).intvl(10s).cnt(5).user_timeout(5s).keepalive(true);
    const auto &other = ka::policy{}.user_timeout(ka::none).cnt(6);
    auto &&third = ka::policy{}.idle(61s);
    ka::enable(fd, policy, ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 5000);
    ka::enable(fd, other, ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 6, 0);
    third.intvl(11s);
    ka::enable(fd, third, ec);
    CHECK(!ec);
    in_force(fd, 1, 61, 11, 6, 0);
    close(fd);
}

/* enable_lenient turns keepalive on even if timers cannot be set, and reports these timers. */
void lenient() {
    std::error_code ec;
    int fd = tcp();
    const int fresh[] = {option(fd, IPPROTO_TCP, TCP_KEEPIDLE), option(fd, IPPROTO_TCP, TCP_KEEPINTVL),
                         option(fd, IPPROTO_TCP, TCP_KEEPCNT)};
    const auto call = [&](auto idle, auto intvl, long long cnt, int expected) {
        close(fd);
        fd = tcp();
        ec = std::make_error_code(std::errc::io_error);
        const ka::missed missed = ka::enable_lenient(fd, idle, intvl, cnt, ec);
        return !ec && missed.native() == expected && static_cast<bool>(missed) == (expected != 0) &&
               missed.idle() == ((expected & KA_MISSED_IDLE) != 0) &&
               missed.intvl() == ((expected & KA_MISSED_INTVL) != 0) &&
               missed.cnt() == ((expected & KA_MISSED_CNT) != 0) && !missed.not_tcp();
    };
    CHECK(call(60s, 10s, 5, 0));
    in_force(fd, 1, 60, 10, 5, 0);
    CHECK(call(1min, 10'000ms, 127, 0));
    in_force(fd, 1, 60, 10, 127, 0);
    CHECK(call(32767s, std::chrono::duration<double>{32767}, 1, 0));
    in_force(fd, 1, 32767, 32767, 1, 0);
    /* Values below 1 leave the timer as it is. */
    CHECK(call(0s, -1s, 0, 0));
    in_force(fd, 1, fresh[0], fresh[1], fresh[2], 0);
    CHECK(call(std::chrono::hours::min(), -1ns, -0x1'0000'0000, 0));
    in_force(fd, 1, fresh[0], fresh[1], fresh[2], 0);
    CHECK(call(std::chrono::duration<double>{std::numeric_limits<double>::quiet_NaN()}, 3s, 3, 0));
    in_force(fd, 1, fresh[0], 3, 3, 0);
    /* Values above the maximum are clamped. */
    CHECK(call(24h, 10s, 5, KA_MISSED_IDLE));
    in_force(fd, 1, 32767, 10, 5, 0);
    CHECK(call(60s, std::chrono::hours::max(), 5, KA_MISSED_INTVL));
    in_force(fd, 1, 60, 32767, 5, 0);
    CHECK(call(60s, 10s, 0x1'0000'0005, KA_MISSED_CNT));
    in_force(fd, 1, 60, 10, 127, 0);
    CHECK(call(std::chrono::duration<double>{1e300}, 32768s, 128, KA_MISSED_IDLE | KA_MISSED_INTVL | KA_MISSED_CNT));
    in_force(fd, 1, 32767, 32767, 127, 0);
    /* Times that are not whole seconds are rounded up. */
    CHECK(call(1500ms, 1ns, 5, KA_MISSED_IDLE | KA_MISSED_INTVL));
    in_force(fd, 1, 2, 1, 5, 0);
    CHECK(call(32767s + 1ms, std::chrono::duration<float>{2.5f}, 5, KA_MISSED_IDLE | KA_MISSED_INTVL));
    in_force(fd, 1, 32767, 3, 5, 0);
    close(fd);

    const int datagram = socket(AF_INET, SOCK_DGRAM, 0);
    ka::missed missed = ka::enable_lenient(datagram, 60s, 1500ms, 5, ec);
    CHECK(!ec && missed.native() == KA_MISSED_TCP && missed.not_tcp() && !missed.idle() && !missed.intvl());
    CHECK(option(datagram, SOL_SOCKET, SO_KEEPALIVE) == 0);
    close(datagram);
    missed = ka::enable_lenient(-1, 60s, 10s, 5, ec);
    CHECK(ec == std::errc::bad_file_descriptor);
    CHECK(missed && missed.idle() && missed.intvl() && missed.cnt() && missed.not_tcp());
}

/* explain names the wrong item of a text that parse rejects. */
void explanations() {
    CHECK(ka::explain("60,10,5").empty());
    CHECK(ka::explain("60,10,128") == "\"128\": cnt must be 1..127 probes");
    CHECK(ka::explain("cnt=0") == "\"cnt=0\": cnt must be 1..127 probes");
    CHECK(ka::explain(std::string("60,10,5\0", 8)) == "a policy must not contain a NUL character");
    const std::string lengthy = "idle=" + std::string(5000, 'x');
    const std::string message = ka::explain(lengthy);
    CHECK(message.rfind("\"" + lengthy + "\": ", 0) == 0 && message.find('\0') == std::string::npos);
}

#if defined(__cpp_exceptions)

template <class Function> bool throws(std::errc expected, const char *where, Function function) {
    try {
        function();
    } catch (const std::system_error &error) {
        return error.code() == expected && std::string(error.what()).rfind(where, 0) == 0;
    }
    return false;
}

void with_exceptions() {
    const int fd = tcp();
    ka::enable(fd, ka::policy{}.idle(60s).intvl(10s).cnt(5));
    in_force(fd, 1, 60, 10, 5, 0);
    CHECK(ka::is_enabled(fd) && ka::query(fd).idle() == 60s);
    CHECK(ka::get_status(fd).probes == 0);
    ka::apply(fd, ka::parse("off,cnt=6"));
    in_force(fd, 0, 60, 10, 6, 0);
    CHECK(!ka::enable_lenient(fd, 61s, 11s, 7));
    in_force(fd, 1, 61, 11, 7, 0);
    CHECK(ka::enable_lenient(fd, 24h, 11s, 7).idle());
    ka::disable(fd);
    in_force(fd, 0, 32767, 11, 7, 0);
    CHECK(ka::defaults().keepalive() == false);
    close(fd);
    const auto [client, listener] = connection();
    CHECK(ka::probe(client, 5s));
    close(client);
    close(listener);

    const auto invalid = std::errc::invalid_argument;
    const auto closed = std::errc::bad_file_descriptor;
    CHECK(throws(invalid, "ka::policy::idle", [] { ignore(ka::policy{}.idle(1500ms)); }));
    CHECK(throws(invalid, "ka::policy::intvl", [] { ignore(ka::policy{}.intvl(0s)); }));
    CHECK(throws(invalid, "ka::policy::cnt", [] { ignore(ka::policy{}.cnt(128)); }));
    CHECK(throws(invalid, "ka::policy::user_timeout", [] { ignore(ka::policy{}.user_timeout(-1ms)); }));
    CHECK(throws(invalid, "ka::policy::rto_max", [] { ignore(ka::policy{}.rto_max(999ms)); }));
    ka::policy policy = ka::policy{}.idle(60s);
    CHECK(throws(invalid, "ka::policy::idle", [&] { policy.intvl(10s).idle(0s).cnt(5); }));
    CHECK(policy == ka::policy{}.idle(60s).intvl(10s));
    CHECK(throws(closed, "ka::apply", [] { ka::apply(-1, ka::policy{}); }));
    CHECK(throws(closed, "ka::enable", [] { ka::enable(-1, ka::policy{}); }));
    CHECK(throws(invalid, "ka::enable: the policy does not turn keepalive on",
                 [] { ka::enable(-1, ka::parse("off")); }));
    CHECK(throws(invalid, "ka::enable", [] { ka::enable(-1, ka::policy{ka_config{}}); }));
    CHECK(throws(invalid, "ka::apply", [] { ka::apply(-1, ka::policy{ka_config{}}); }));
    CHECK(throws(closed, "ka::enable_lenient", [] { ka::enable_lenient(-1, 60s, 10s, 5); }));
    CHECK(throws(closed, "ka::disable", [] { ka::disable(-1); }));
    CHECK(throws(closed, "ka::is_enabled", [] { ignore(ka::is_enabled(-1)); }));
    CHECK(throws(closed, "ka::query", [] { ignore(ka::query(-1)); }));
    CHECK(throws(closed, "ka::get_status", [] { ignore(ka::get_status(-1)); }));
    CHECK(throws(closed, "ka::probe", [] { ignore(ka::probe(-1, 1s)); }));
    CHECK(throws(invalid, "ka::probe", [] { ignore(ka::probe(-1, -1ms)); }));
    CHECK(throws(invalid, "ka::parse: \"x\": must be ", [] { ignore(ka::parse("x")); }));
    CHECK(throws(std::errc::result_out_of_range, "ka::parse: \"cnt=0\": cnt must be 1..127 probes",
                 [] { ignore(ka::parse("cnt=0")); }));
    CHECK(throws(invalid, "ka::parse: a policy must not contain a NUL character",
                 [] { ignore(ka::parse(std::string("60,10,5\0", 8))); }));
    CHECK(throws(invalid, "ka::format", [] { ignore(ka::format(ka::policy{ka_config{}})); }));
    CHECK(throws(invalid, "ka::plan_path", [] { ignore(ka::plan_path(1ms)); }));
    CHECK(throws(std::errc::result_out_of_range, "ka::plan_detect", [] { ignore(ka::plan_detect(1ms)); }));
    CHECK(throws(std::errc::no_such_file_or_directory, "ka::plan_preset", [] { ignore(ka::plan_preset("x")); }));
    CHECK(throws(invalid, "ka::detect_time", [] { ignore(ka::detect_time(ka::policy{})); }));
    CHECK(throws(invalid, "ka::data_time", [] { ignore(ka::data_time(ka::policy{}.rto_max(ka::automatic))); }));
    CHECK(throws(invalid, "ka::reaper", [] { ka::reaper{0s}; }));
    CHECK(throws(invalid, "ka::beat::sign", [] { ignore(ka::beat{1, 1}.sign(std::string("short"), {})); }));
    CHECK(throws(std::errc::bad_message, "ka::beat::client_of", [] { ignore(ka::beat::client_of({})); }));
    CHECK(throws(std::errc::bad_message, "ka::beat::verify",
                 [] { ignore(ka::beat::verify(std::string(16, 'k'), {}, 0, {})); }));

    CHECK(ka::format(ka::parse("60,10,5")) == "idle=60,intvl=10,cnt=5");
    CHECK(ka::format(ka::policy{}.keepalive(false)) == "off");
    CHECK(ka::detect_time(ka::plan_detect(30s)).worst <= 30s);
    CHECK(ka::data_time(ka::policy{}.user_timeout(30s)).typical == 30s);
    CHECK(ka::plan_preset("azure-lb") == ka::plan_path(4min));

    ka::reaper reaper{30s};
    const auto start = ka::reaper::clock::now();
    reaper.touch(5, start);
    reaper.touch(9, start);
    reaper.touch(7);
    CHECK(throws(closed, "ka::reaper::touch", [&] { reaper.touch(-1); }));
    CHECK(reaper.expired(start + 1s).empty());
    CHECK(reaper.expired(start + 30s).size() >= 2 && reaper.size() <= 1);
    // The result has the connections that are due, and little spare capacity.
    ka::reaper many{30s};
    for (int number = 0; number < 5000; number++)
        many.touch(number, start + (number < 20 ? 0s : 1s));
    const auto due = many.expired(start + 30s);
    CHECK(due.size() == 20 && due.front() == 0 && due.back() == 19 && due.capacity() < 200 && many.size() == 4980);
    CHECK(many.expired(start + 31s).size() == 4980 && many.empty());
    ka::reaper empty = std::move(reaper);
    CHECK(throws(invalid, "ka::reaper::expired", [&] { int fds[1]; ignore(reaper.expired(fds, 1)); }));
    CHECK(throws(invalid, "ka::reaper::expired", [&] { ignore(reaper.expired()); }));

    const std::array<std::uint8_t, 32> key{1, 2, 3};
    const auto nonce = ka::beat::make_nonce();
    const auto frame = ka::beat{7, 2}.sign(key, nonce);
    CHECK(ka::beat::verify(key, nonce, 1, frame).sequence == 2);
}

#else

/* A bad value makes the policy invalid. */
void with_exceptions() {
    std::error_code ec;
    const int fd = tcp();
    for (const ka::policy &policy : {ka::policy{}.idle(1500ms), ka::policy{}.intvl(0s), ka::policy{}.cnt(-1),
                                     ka::policy{}.user_timeout(-1ms), ka::policy{}.rto_max(999ms),
                                     ka::policy{}.cnt(0).cnt(5).keepalive(true)}) {
        CHECK(!policy.is_valid());
        ka::enable(fd, policy, ec);
        CHECK(ec == std::errc::invalid_argument);
        ka::apply(fd, policy, ec);
        CHECK(ec == std::errc::invalid_argument);
    }
    CHECK(option(fd, SOL_SOCKET, SO_KEEPALIVE) == 0);
    close(fd);
}

#endif

} // namespace

int main() {
    without_exceptions();
    retransmissions();
    bad_values();
    invalid_policies();
    references_to_temporaries();
    lenient();
    explanations();
    with_exceptions();
}
