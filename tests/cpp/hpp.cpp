/* ka.hpp: every function of it, throwing and not, asked of the kernel. Ends with 0 where all is as it should be. */
#include <ka.hpp>

#include <cstdio>
#include <cstdlib>
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

/* What the kernel says is on the socket. */
void in_force(int fd, int on, int idle, int intvl, int cnt, int user_timeout) {
    CHECK(option(fd, SOL_SOCKET, SO_KEEPALIVE) == on);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == idle);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPINTVL) == intvl);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPCNT) == cnt);
    CHECK(option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == user_timeout);
}

int tcp() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    return fd;
}

/* All in constant expressions. */
constexpr ka::policy constant() { return ka::policy{}.idle(1min).intvl(10'000ms).cnt(5).user_timeout(ka::automatic); }
static_assert(constant().idle() == 60s);
static_assert(constant().intvl() == 10s);
static_assert(constant().cnt() == 5);
static_assert(constant().is_automatic() && !constant().user_timeout());
static_assert(constant() != ka::policy{} && constant() == constant());
static_assert(!std::is_copy_constructible_v<ka::reaper> && !std::is_copy_assignable_v<ka::reaper>);
static_assert(std::is_nothrow_move_constructible_v<ka::reaper> && std::is_nothrow_move_assignable_v<ka::reaper>);
static_assert(!std::is_constructible_v<ka::key, std::vector<int>>, "a key is bytes");

void without_exceptions() {
    std::error_code ec = std::make_error_code(std::errc::io_error);
    const int fd = tcp();

    ka::enable(fd, ka::policy{}.idle(60s).intvl(10s).cnt(5).user_timeout(90'500ms), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 5, 90500);
    CHECK(ka::is_enabled(fd, ec) && !ec);
    ka::policy found = ka::query(fd, ec);
    CHECK(!ec && found == ka::policy{}.idle(60s).intvl(10s).cnt(5).user_timeout(90'500ms));
    /* What is not named stays. */
    ka::enable(fd, ka::policy{}.cnt(7), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 7, 90500);
    ka::enable(fd, ka::policy{}.user_timeout(ka::automatic), ec);
    CHECK(!ec);
    in_force(fd, 1, 60, 10, 7, 130000);
    ka::disable(fd, ec);
    CHECK(!ec);
    in_force(fd, 0, 60, 10, 7, 130000);
    ka::enable(fd, ka::policy{}.enabled(std::nullopt).idle(61s), ec);
    in_force(fd, 0, 61, 10, 7, 130000);
    CHECK(!ka::is_enabled(fd, ec) && !ec);
    CHECK(ka::get_status(fd, ec).state == TCP_CLOSE && !ec);
    CHECK(ka::defaults(ec).enabled() == false && !ec);

    /* A value that is none: told, and the policy as it was. */
    ka::policy policy = ka::policy{}.idle(60s).intvl(10s).cnt(5);
    const ka::policy before = policy;
    const auto refused = [&](auto set) {
        ec.clear();
        set();
        return ec == std::errc::invalid_argument && policy == before;
    };
    CHECK(refused([&] { policy.idle(1500ms, ec); }));
    CHECK(refused([&] { policy.idle(1ns, ec); }));
    CHECK(refused([&] { policy.idle(0s, ec); }));
    CHECK(refused([&] { policy.idle(-1s, ec); }));
    CHECK(refused([&] { policy.idle(-2s, ec); }));
    CHECK(refused([&] { policy.idle(32768s, ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::hours::max(), ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::hours::min(), ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::nanoseconds::max(), ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::duration<std::uint64_t, std::exa>::max(), ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::duration<std::uint64_t, std::atto>::max(), ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::duration<double>{1.5}, ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::duration<double>{1e300}, ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::duration<double>{std::numeric_limits<double>::quiet_NaN()}, ec); }));
    CHECK(refused([&] { policy.idle(std::chrono::duration<float>{-std::numeric_limits<float>::infinity()}, ec); }));
    CHECK(refused([&] { policy.intvl(2500us, ec); }));
    CHECK(refused([&] { policy.intvl(10h, ec); }));
    CHECK(refused([&] { policy.cnt(0, ec); }));
    CHECK(refused([&] { policy.cnt(128, ec); }));
    CHECK(refused([&] { policy.cnt(-1, ec); }));
    CHECK(refused([&] { policy.user_timeout(1us, ec); }));
    CHECK(refused([&] { policy.user_timeout(-1ms, ec); }));
    CHECK(refused([&] { policy.user_timeout(25 * 24h, ec); }));
    policy.idle(std::chrono::duration<double>{90}, ec).intvl(32767s, ec).cnt(127, ec).user_timeout(0s, ec);
    CHECK(!ec && policy.idle() == 90s && policy.intvl() == 32767s && policy.cnt() == 127);
    CHECK(policy.user_timeout() == 0ms);
    policy.idle(std::chrono::duration<short, std::ratio<60>>{2}, ec).idle(std::chrono::duration<std::uint8_t>{9}, ec);
    CHECK(!ec && policy.idle() == 9s);
    policy.idle(std::chrono::duration<int, std::ratio<3, 2>>{4}, ec);
    CHECK(!ec && policy.idle() == 6s);
    policy.idle(std::chrono::duration<int, std::ratio<3, 2>>{3}, ec);
    CHECK(ec == std::errc::invalid_argument && policy.idle() == 6s);

    /* Errors of the library. */
    ka::enable(-1, before, ec);
    CHECK(ec == std::errc::bad_file_descriptor && ec.category() == std::generic_category());
    ec.clear();
    ka::disable(-1, ec);
    CHECK(ec == std::errc::bad_file_descriptor);
    CHECK(!ka::is_enabled(0, ec) && ec == std::errc::not_a_socket);
    ka::query(-1, ec);
    CHECK(ec == std::errc::bad_file_descriptor);
    ka::get_status(-1, ec);
    CHECK(ec == std::errc::bad_file_descriptor);
    close(fd);

    CHECK(ka::parse("60,10,5", ec) == before && !ec);
    ka::parse("60", ec);
    CHECK(ec == std::errc::invalid_argument);
    ka::parse(std::string("60,10,5\0,9", 10), ec);
    CHECK(ec == std::errc::invalid_argument);
    ka::parse("32768,1,1", ec);
    CHECK(ec == std::errc::result_out_of_range);
    CHECK(ka::format(before, ec) == "idle=60,intvl=10,cnt=5" && !ec);
    CHECK(ka::format(ka::policy{ka_config{}}, ec).empty() && ec == std::errc::invalid_argument);

    CHECK(ka::plan_path(350s, ec) == ka::policy{}.idle(280s).intvl(30s).cnt(5) && !ec);
    CHECK(ka::plan_preset("aws-nlb", ec) == ka::plan_path(350s, ec) && !ec);
    const ka::policy plan = ka::plan_detect(30s, ec);
    CHECK(!ec && ka::detect_time(plan, ec).worst <= 30s && !ec && ka::detect_time(plan, ec).typical > 20s);
    ka::plan_detect(1s, ec);
    CHECK(ec == std::errc::result_out_of_range);
    ka::plan_detect(30s + 1us, ec);
    CHECK(ec == std::errc::invalid_argument);
    ka::plan_path(1500ms, ec);
    CHECK(ec == std::errc::invalid_argument);
    ka::plan_path(std::chrono::hours::max(), ec);
    CHECK(ec == std::errc::invalid_argument);
    ka::plan_preset("no-such", ec);
    CHECK(ec == std::errc::no_such_file_or_directory);
    ka::detect_time(ka::policy{}, ec);
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
    ka::beat::verify(key, nonce, 1, frame, ec);
    CHECK(ec.value() == ESTALE);
    ka::beat::verify(std::string(key.rbegin(), key.rend()), nonce, 0, frame, ec);
    CHECK(ec == std::errc::bad_message);
    beat.sign(std::vector<unsigned char>(15), nonce, ec);
    CHECK(ec == std::errc::invalid_argument);
    ka::beat::client_of(ka::beat::frame{}, ec);
    CHECK(ec == std::errc::bad_message);
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
    ka::disable(fd);
    in_force(fd, 0, 60, 10, 5, 0);
    CHECK(ka::defaults().enabled() == false);
    close(fd);

    const auto invalid = std::errc::invalid_argument;
    const auto closed = std::errc::bad_file_descriptor;
    CHECK(throws(invalid, "ka::policy::idle", [] { ka::policy{}.idle(1500ms); }));
    CHECK(throws(invalid, "ka::policy::intvl", [] { ka::policy{}.intvl(0s); }));
    CHECK(throws(invalid, "ka::policy::cnt", [] { ka::policy{}.cnt(128); }));
    CHECK(throws(invalid, "ka::policy::user_timeout", [] { ka::policy{}.user_timeout(-1ms); }));
    CHECK(throws(closed, "ka::enable", [] { ka::enable(-1, ka::policy{}); }));
    CHECK(throws(closed, "ka::disable", [] { ka::disable(-1); }));
    CHECK(throws(closed, "ka::is_enabled", [] { ka::is_enabled(-1); }));
    CHECK(throws(closed, "ka::query", [] { ka::query(-1); }));
    CHECK(throws(closed, "ka::get_status", [] { ka::get_status(-1); }));
    CHECK(throws(invalid, "ka::parse", [] { ka::parse("x"); }));
    CHECK(throws(invalid, "ka::format", [] { ka::format(ka::policy{ka_config{}}); }));
    CHECK(throws(invalid, "ka::plan_path", [] { ka::plan_path(1ms); }));
    CHECK(throws(std::errc::result_out_of_range, "ka::plan_detect", [] { ka::plan_detect(1ms); }));
    CHECK(throws(std::errc::no_such_file_or_directory, "ka::plan_preset", [] { ka::plan_preset("x"); }));
    CHECK(throws(invalid, "ka::detect_time", [] { ka::detect_time(ka::policy{}); }));
    CHECK(throws(invalid, "ka::reaper", [] { ka::reaper{0s}; }));
    CHECK(throws(invalid, "ka::beat::sign", [] { ka::beat{1, 1}.sign(std::string("short"), {}); }));
    CHECK(throws(std::errc::bad_message, "ka::beat::client_of", [] { ka::beat::client_of({}); }));
    CHECK(throws(std::errc::bad_message, "ka::beat::verify",
                 [] { ka::beat::verify(std::string(16, 'k'), {}, 0, {}); }));

    CHECK(ka::format(ka::parse("60,10,5")) == "idle=60,intvl=10,cnt=5");
    CHECK(ka::format(ka::policy{}.enabled(false)) == "off");
    CHECK(ka::detect_time(ka::plan_detect(30s)).worst <= 30s);
    CHECK(ka::plan_preset("azure-lb") == ka::plan_path(4min));

    ka::reaper reaper{30s};
    const auto start = ka::reaper::clock::now();
    reaper.touch(5, start);
    reaper.touch(9, start);
    reaper.touch(7);
    CHECK(throws(closed, "ka::reaper::touch", [&] { reaper.touch(-1); }));
    CHECK(reaper.expired(start + 1s).empty());
    CHECK(reaper.expired(start + 30s).size() >= 2 && reaper.size() <= 1);
    // As many as are due, and room for few more.
    ka::reaper many{30s};
    for (int number = 0; number < 5000; number++)
        many.touch(number, start + (number < 20 ? 0s : 1s));
    const auto due = many.expired(start + 30s);
    CHECK(due.size() == 20 && due.front() == 0 && due.back() == 19 && due.capacity() < 200 && many.size() == 4980);
    CHECK(many.expired(start + 31s).size() == 4980 && many.empty());
    ka::reaper empty = std::move(reaper);
    CHECK(throws(invalid, "ka::reaper::expired", [&] { int fds[1]; reaper.expired(fds, 1); }));

    const std::array<std::uint8_t, 32> key{1, 2, 3};
    const auto nonce = ka::beat::make_nonce();
    const auto frame = ka::beat{7, 2}.sign(key, nonce);
    CHECK(ka::beat::verify(key, nonce, 1, frame).sequence == 2);
}

#else

/* What would throw is refused by every call. */
void with_exceptions() {
    std::error_code ec;
    const int fd = tcp();
    for (const ka::policy &policy : {ka::policy{}.idle(1500ms), ka::policy{}.intvl(0s), ka::policy{}.cnt(-1),
                                     ka::policy{}.user_timeout(-1ms)}) {
        ka::enable(fd, policy, ec);
        CHECK(ec == std::errc::invalid_argument);
    }
    CHECK(option(fd, SOL_SOCKET, SO_KEEPALIVE) == 0);
    close(fd);
}

#endif

} // namespace

int main() {
    without_exceptions();
    with_exceptions();
}
