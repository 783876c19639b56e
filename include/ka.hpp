/*
 * ka.hpp - TCP keepalive that works, for C++17 and newer: ka.h with std::chrono, exceptions and RAII. Link with -lka.
 *
 *     using namespace std::chrono_literals;
 *
 *     ka::enable(fd, ka::policy{}.idle(60s).intvl(10s).cnt(5));
 *
 * fd is a descriptor: Asio's socket.native_handle(), libuv's uv_fileno(), or what socket(2) returned. ka.h says what
 * each function does, on which sockets, which errors there are and what a failure leaves behind; here is only what
 * C++ adds.
 *
 * Errors. What fails throws std::system_error with the errno of ka.h, in std::generic_category(). Each function has an
 * overload with a std::error_code& at its end, which is cleared on success: that one does not throw. (std::bad_alloc
 * is possible where a std::string or a std::vector is made.) With -fno-exceptions only those overloads are there.
 *
 * Durations are of any type of std::chrono. Where the kernel has whole seconds, or whole milliseconds, one that is not
 * whole is an error (EINVAL): nothing is truncated or rounded. So is one that is out of range, however large.
 *
 * Threads and signals: as ka.h says. An overload with a std::error_code& that makes no string and no vector may be
 * called in a signal handler where the function of ka.h may.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef KA_HPP
#define KA_HPP

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <ratio>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <ka.h>

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define KA_HPP_THROWS 1
#else
#define KA_HPP_THROWS 0
#endif

namespace ka {

namespace detail {

inline std::error_code error(int number) noexcept { return {number, std::generic_category()}; }

/** What a call of ka.h that returned -1 (or NULL) left in errno. */
inline std::error_code error(bool failed) noexcept { return failed ? error(errno) : std::error_code{}; }

#if KA_HPP_THROWS
inline void check(const std::error_code &ec, const char *function) {
    if (ec)
        throw std::system_error(ec, function);
}
#endif

/** A duration in whole Units from min to max, or nothing where it is not one. */
template <class Unit, class Rep, class Period>
constexpr std::optional<std::int64_t> whole(const std::chrono::duration<Rep, Period> &duration, std::int64_t min,
                                            std::int64_t max) noexcept {
    using ratio = std::ratio_divide<Period, typename Unit::period>;
    const Rep count = duration.count();
    if constexpr (std::chrono::treat_as_floating_point_v<Rep>) {
        const auto units = static_cast<long double>(count) * static_cast<long double>(ratio::num) /
                           static_cast<long double>(ratio::den);
        // Written so that what is no number is out of range.
        if (!(units >= static_cast<long double>(min) && units <= static_cast<long double>(max)))
            return std::nullopt;
        const auto result = static_cast<std::int64_t>(units);
        // Equality is meant: neither is more than the other.
        if (static_cast<long double>(result) < units || static_cast<long double>(result) > units)
            return std::nullopt;
        return result;
    } else {
        static_assert(std::is_integral_v<Rep>, "a duration counts in integers or in floating point numbers");
        if (count < Rep{0})
            return std::nullopt;
        const auto ticks = static_cast<std::uintmax_t>(count);
        const auto num = static_cast<std::uintmax_t>(ratio::num);
        const auto den = static_cast<std::uintmax_t>(ratio::den);
        // num and den have no common divisor.
        if (ticks % den != 0 || ticks / den > static_cast<std::uintmax_t>(max) / num)
            return std::nullopt;
        const auto result = static_cast<std::int64_t>(ticks / den * num);
        return result < min ? std::nullopt : std::optional<std::int64_t>{result};
    }
}

/** What a word of struct ka_config names. */
template <class Value> constexpr std::optional<Value> named(std::int32_t word) noexcept {
    return word == KA_KEEP ? std::nullopt : std::optional<Value>{Value{word}};
}

} // namespace detail

/** The user timeout that follows idle, intvl and cnt: KA_AUTO. */
struct automatic_t {
    explicit constexpr automatic_t() = default;
};
inline constexpr automatic_t automatic{};

/**
 * A keepalive policy: struct ka_config. It turns keepalive on, and what is not named stays as it is (KA_KEEP).
 *
 * A value that cannot be set throws where it is named, or is told to the std::error_code& and leaves the policy as it
 * was. In a constant expression it does not compile. With -fno-exceptions it makes a policy that every call refuses
 * with EINVAL.
 */
class policy {
public:
    constexpr policy() noexcept { config_.enabled = 1; }

    /** What ka.h has. */
    explicit constexpr policy(const ka_config &config) noexcept : config_(config) {}
    constexpr const ka_config &native() const noexcept { return config_; }
    ka_config *native_handle() noexcept { return &config_; }

    /** How long the connection is idle before the first probe: whole seconds, 1 s to KA_IDLE_MAX s. */
    template <class Rep, class Period> constexpr policy &idle(std::chrono::duration<Rep, Period> time) {
        return must(config_.idle, detail::whole<std::chrono::seconds>(time, 1, KA_IDLE_MAX), 0,
                    "ka::policy::idle: whole seconds from 1 to 32767");
    }
    template <class Rep, class Period>
    policy &idle(std::chrono::duration<Rep, Period> time, std::error_code &ec) noexcept {
        return may(config_.idle, detail::whole<std::chrono::seconds>(time, 1, KA_IDLE_MAX), ec);
    }

    /** From one unanswered probe to the next: whole seconds, 1 s to KA_INTVL_MAX s. */
    template <class Rep, class Period> constexpr policy &intvl(std::chrono::duration<Rep, Period> time) {
        return must(config_.intvl, detail::whole<std::chrono::seconds>(time, 1, KA_INTVL_MAX), 0,
                    "ka::policy::intvl: whole seconds from 1 to 32767");
    }
    template <class Rep, class Period>
    policy &intvl(std::chrono::duration<Rep, Period> time, std::error_code &ec) noexcept {
        return may(config_.intvl, detail::whole<std::chrono::seconds>(time, 1, KA_INTVL_MAX), ec);
    }

    /** How many probes without an answer end the connection: 1 to KA_CNT_MAX. */
    constexpr policy &cnt(int probes) {
        return must(config_.cnt, count(probes), 0, "ka::policy::cnt: probes from 1 to 127");
    }
    policy &cnt(int probes, std::error_code &ec) noexcept { return may(config_.cnt, count(probes), ec); }

    /** How long sent data may stay unacknowledged: whole milliseconds, 0 (the kernel's own rule) to 2147483647 ms. */
    template <class Rep, class Period> constexpr policy &user_timeout(std::chrono::duration<Rep, Period> time) {
        return must(config_.user_timeout, timeout(time), refused,
                    "ka::policy::user_timeout: whole milliseconds from 0 to 2147483647");
    }
    template <class Rep, class Period>
    policy &user_timeout(std::chrono::duration<Rep, Period> time, std::error_code &ec) noexcept {
        return may(config_.user_timeout, timeout(time), ec);
    }
    constexpr policy &user_timeout(automatic_t) noexcept {
        config_.user_timeout = KA_AUTO;
        return *this;
    }

    /** On, off, or (std::nullopt) as it is. */
    constexpr policy &enabled(std::optional<bool> on) noexcept {
        config_.enabled = on ? static_cast<std::int32_t>(*on) : KA_KEEP;
        return *this;
    }

    /** What it says; std::nullopt is as it is, KA_KEEP. */
    constexpr std::optional<bool> enabled() const noexcept {
        return config_.enabled == KA_KEEP ? std::nullopt : std::optional<bool>{config_.enabled != 0};
    }
    constexpr std::optional<std::chrono::seconds> idle() const noexcept {
        return detail::named<std::chrono::seconds>(config_.idle);
    }
    constexpr std::optional<std::chrono::seconds> intvl() const noexcept {
        return detail::named<std::chrono::seconds>(config_.intvl);
    }
    constexpr std::optional<int> cnt() const noexcept {
        return detail::named<int>(config_.cnt);
    }
    /** std::nullopt also where it is automatic. */
    constexpr std::optional<std::chrono::milliseconds> user_timeout() const noexcept {
        return is_automatic() ? std::nullopt : detail::named<std::chrono::milliseconds>(config_.user_timeout);
    }
    constexpr bool is_automatic() const noexcept { return config_.user_timeout == KA_AUTO; }

    friend constexpr bool operator==(const policy &a, const policy &b) noexcept {
        return a.config_.enabled == b.config_.enabled && a.config_.idle == b.config_.idle &&
               a.config_.intvl == b.config_.intvl && a.config_.cnt == b.config_.cnt &&
               a.config_.user_timeout == b.config_.user_timeout;
    }
    friend constexpr bool operator!=(const policy &a, const policy &b) noexcept { return !(a == b); }

private:
    /** No user timeout, and neither KA_KEEP nor KA_AUTO. */
    static constexpr std::int32_t refused = std::numeric_limits<std::int32_t>::min();

    static constexpr std::optional<std::int64_t> count(int probes) noexcept {
        return probes >= 1 && probes <= KA_CNT_MAX ? std::optional<std::int64_t>{probes} : std::nullopt;
    }
    template <class Rep, class Period>
    static constexpr std::optional<std::int64_t> timeout(std::chrono::duration<Rep, Period> time) noexcept {
        return detail::whole<std::chrono::milliseconds>(time, 0, std::numeric_limits<std::int32_t>::max());
    }

    constexpr policy &must(std::int32_t &field, std::optional<std::int64_t> value, [[maybe_unused]] std::int32_t bad,
                           [[maybe_unused]] const char *what) {
#if KA_HPP_THROWS
        if (!value)
            throw std::system_error(EINVAL, std::generic_category(), what);
        field = static_cast<std::int32_t>(*value);
#else
        field = value ? static_cast<std::int32_t>(*value) : bad;
#endif
        return *this;
    }
    policy &may(std::int32_t &field, std::optional<std::int64_t> value, std::error_code &ec) noexcept {
        ec = value ? std::error_code{} : detail::error(EINVAL);
        if (value)
            field = static_cast<std::int32_t>(*value);
        return *this;
    }

    ka_config config_ = KA_CONFIG_INIT;
};

/** How long a policy needs to find a dead peer: ka_detect_time. */
struct detection {
    std::chrono::milliseconds typical;
    std::chrono::milliseconds worst;
};

/** What a connection is doing: struct ka_status. */
struct status {
    /** TCP_ESTABLISHED (1) to TCP_CLOSING (11) of netinet/tcp.h. */
    unsigned state;
    unsigned probes;
    unsigned retransmits;
    unsigned unacked;
    std::chrono::milliseconds last_ack;
    std::chrono::milliseconds last_recv;
    std::chrono::milliseconds last_send;
    std::chrono::microseconds rtt;
};

/** Sets what the policy names: ka_apply. */
inline void enable(int fd, const policy &policy, std::error_code &ec) noexcept {
    ec = detail::error(ka_apply(fd, &policy.native()) != 0);
}

/** Turns keepalive off: ka_disable. */
inline void disable(int fd, std::error_code &ec) noexcept { ec = detail::error(ka_disable(fd) != 0); }

/** Whether keepalive is on: ka_is_enabled. False where it fails. */
inline bool is_enabled(int fd, std::error_code &ec) noexcept {
    const int result = ka_is_enabled(fd);
    ec = detail::error(result < 0);
    return result > 0;
}

/** All that is in force: ka_query. */
inline policy query(int fd, std::error_code &ec) noexcept {
    policy result;
    ec = detail::error(ka_query(fd, result.native_handle()) != 0);
    return result;
}

/** What a fresh socket of this network namespace has: ka_defaults. */
inline policy defaults(std::error_code &ec) noexcept {
    policy result;
    ec = detail::error(ka_defaults(result.native_handle()) != 0);
    return result;
}

/** What the connection is doing: ka_get_status. */
inline status get_status(int fd, std::error_code &ec) noexcept {
    ka_status native = KA_STATUS_INIT;
    ec = detail::error(ka_get_status(fd, &native) != 0);
    return {native.state,
            native.probes,
            native.retransmits,
            native.unacked,
            std::chrono::milliseconds{native.last_ack_ms},
            std::chrono::milliseconds{native.last_recv_ms},
            std::chrono::milliseconds{native.last_send_ms},
            std::chrono::microseconds{native.rtt_us}};
}

/** Reads a policy from its text, "60,10,5" or "idle=1m, intvl=10s, cnt=5": ka_parse. */
inline policy parse(const std::string &text, std::error_code &ec) noexcept {
    policy result;
    // A NUL inside is an ending for C, and none for C++.
    const bool whole = text.find('\0') == std::string::npos;
    ec = whole ? detail::error(ka_parse(text.c_str(), result.native_handle()) != 0) : detail::error(EINVAL);
    return result;
}

/** Writes a policy as the text that parse reads: ka_format. */
inline std::string format(const policy &policy, std::error_code &ec) {
    std::string text;
    const int length = ka_format(&policy.native(), nullptr, 0);
    ec = detail::error(length < 0);
    if (length > 0) {
        text.resize(static_cast<std::size_t>(length) + 1);
        ka_format(&policy.native(), text.data(), text.size());
        text.pop_back();
    }
    return text;
}

/** A policy that knows of a dead peer within a time, in whole milliseconds: ka_plan_detect. */
template <class Rep, class Period>
policy plan_detect(std::chrono::duration<Rep, Period> within, std::error_code &ec) noexcept {
    policy result;
    const auto ms =
        detail::whole<std::chrono::milliseconds>(within, 0, std::numeric_limits<std::uint32_t>::max());
    ec = ms ? detail::error(ka_plan_detect(static_cast<std::uint32_t>(*ms), result.native_handle()) != 0)
            : detail::error(EINVAL);
    return result;
}

/** A policy for a path that forgets after so long, in whole seconds: ka_plan_path. */
template <class Rep, class Period>
policy plan_path(std::chrono::duration<Rep, Period> path_idle, std::error_code &ec) noexcept {
    policy result;
    const auto s = detail::whole<std::chrono::seconds>(path_idle, 0, std::numeric_limits<std::uint32_t>::max());
    ec = s ? detail::error(ka_plan_path(static_cast<std::uint32_t>(*s), result.native_handle()) != 0)
           : detail::error(EINVAL);
    return result;
}

/** A policy for a well-known middlebox, as "aws-nlb": ka_plan_preset. */
inline policy plan_preset(const char *name, std::error_code &ec) noexcept {
    policy result;
    ec = detail::error(ka_plan_preset(name, result.native_handle()) != 0);
    return result;
}

/** How long the policy needs to find a dead peer: ka_detect_time. */
inline detection detect_time(const policy &policy, std::error_code &ec) noexcept {
    std::uint64_t typical = 0;
    std::uint64_t worst = 0;
    ec = detail::error(ka_detect_time(&policy.native(), &typical, &worst) != 0);
    return {std::chrono::milliseconds{typical}, std::chrono::milliseconds{worst}};
}

/** Which libka runs: ka_version. */
inline const char *version() noexcept { return ka_version(); }

/**
 * Which connections have done no business for a time: struct ka_reaper. It can be moved, not copied; one that was moved
 * from has nothing, and its calls fail with EINVAL. One thread at a time.
 */
class reaper {
public:
    using clock = std::chrono::steady_clock;

    /** timeout: whole milliseconds, 1 ms to 4294967295 ms. A failure makes one whose calls fail. */
    template <class Rep, class Period>
    reaper(std::chrono::duration<Rep, Period> timeout, std::error_code &ec) noexcept {
        const auto ms =
            detail::whole<std::chrono::milliseconds>(timeout, 1, std::numeric_limits<std::uint32_t>::max());
        if (ms)
            reaper_.reset(ka_reaper_new(static_cast<std::uint32_t>(*ms)));
        ec = ms ? detail::error(reaper_ == nullptr) : detail::error(EINVAL);
    }

    /** Notes that a connection does business; one that is new is added: ka_reaper_touch. */
    void touch(int fd, clock::time_point now, std::error_code &ec) noexcept {
        ec = detail::error(ka_reaper_touch(reaper_.get(), fd, ms(now)) != 0);
    }

    /** Takes a connection out, before close(2): ka_reaper_forget. False where it was not there. */
    bool forget(int fd) noexcept { return ka_reaper_forget(reaper_.get(), fd) == 0; }

    /** Takes out and names at most n connections that are due, the most silent first: ka_reaper_expired. */
    std::size_t expired(int *fds, std::size_t n, clock::time_point now, std::error_code &ec) noexcept {
        const int count = ka_reaper_expired(reaper_.get(), ms(now), fds, n);
        ec = detail::error(count < 0);
        return count < 0 ? 0 : static_cast<std::size_t>(count);
    }

    /** How long until one is due, for epoll_wait(2) or a timer: ka_reaper_next. std::nullopt where it has none. */
    std::optional<std::chrono::milliseconds> next(clock::time_point now = clock::now()) const noexcept {
        const int time = ka_reaper_next(reaper_.get(), ms(now));
        return time < 0 ? std::nullopt : std::optional<std::chrono::milliseconds>{std::chrono::milliseconds{time}};
    }

    /** How many connections it has. */
    std::size_t size() const noexcept { return ka_reaper_len(reaper_.get()); }
    bool empty() const noexcept { return size() == 0; }

    ka_reaper *native_handle() noexcept { return reaper_.get(); }

#if KA_HPP_THROWS
    template <class Rep, class Period> explicit reaper(std::chrono::duration<Rep, Period> timeout) {
        std::error_code ec;
        reaper made{timeout, ec};
        detail::check(ec, "ka::reaper");
        *this = std::move(made);
    }
    void touch(int fd, clock::time_point now = clock::now()) {
        std::error_code ec;
        touch(fd, now, ec);
        detail::check(ec, "ka::reaper::touch");
    }
    std::size_t expired(int *fds, std::size_t n, clock::time_point now = clock::now()) {
        std::error_code ec;
        const std::size_t count = expired(fds, n, now, ec);
        detail::check(ec, "ka::reaper::expired");
        return count;
    }
    /** All that are due; where memory ends, those that it was enough for, and the others at the next call. */
    std::vector<int> expired(clock::time_point now = clock::now()) {
        std::vector<int> fds;
        // Room before any is taken out, and not for all that there are: few may be due.
        for (std::size_t room = 16; next(now) == std::chrono::milliseconds{0}; room *= 2) {
            const std::size_t have = fds.size();
            try {
                fds.resize(have + std::min(room, size()));
            } catch (const std::bad_alloc &) {
                if (have == 0)
                    throw;
                break;
            }
            fds.resize(have + expired(fds.data() + have, fds.size() - have, now));
        }
        return fds;
    }
#endif

private:
    struct free {
        void operator()(ka_reaper *reaper) const noexcept { ka_reaper_free(reaper); }
    };
    static std::uint64_t ms(clock::time_point now) noexcept {
        const auto since = std::chrono::floor<std::chrono::milliseconds>(now.time_since_epoch()).count();
        return since < 0 ? 0 : static_cast<std::uint64_t>(since);
    }

    std::unique_ptr<ka_reaper, free> reaper_;
};

/** The bytes of a key, which stay where they are: of a std::string, a std::vector of bytes, a std::array. */
class key {
public:
    constexpr key(const std::uint8_t *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Bytes, class Byte = typename Bytes::value_type,
              class = std::enable_if_t<sizeof(Byte) == 1 && !std::is_same_v<Byte, bool>>>
    key(const Bytes &bytes) noexcept
        : data_(reinterpret_cast<const std::uint8_t *>(bytes.data())), size_(bytes.size()) {}

    constexpr const std::uint8_t *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }

private:
    const std::uint8_t *data_;
    std::size_t size_;
};

/** A heartbeat that only a client of yours can make: struct ka_beat. */
struct beat {
    using nonce = std::array<std::uint8_t, KA_BEAT_NONCE_SIZE>;
    using frame = std::array<std::uint8_t, KA_BEAT_SIZE>;

    std::uint64_t client = 0;
    std::uint64_t sequence = 0;

    /** A nonce for a connection: ka_beat_nonce. */
    static nonce make_nonce(std::error_code &ec) noexcept {
        nonce made{};
        ec = detail::error(ka_beat_nonce(made.data()) != 0);
        return made;
    }

    /** The bytes to send: ka_beat_sign. */
    frame sign(const key &key, const nonce &sent, std::error_code &ec) const noexcept {
        frame made{};
        const ka_beat native = {client, sequence};
        ec = detail::error(ka_beat_sign(key.data(), key.size(), sent.data(), &native, made.data()) != 0);
        return made;
    }

    /** Whose key to take; unproven: ka_beat_client. */
    static std::uint64_t client_of(const frame &came, std::error_code &ec) noexcept {
        std::uint64_t number = 0;
        ec = detail::error(ka_beat_client(came.data(), &number) != 0);
        return number;
    }

    /**
     * The heartbeat that came, if it is genuine and new for the nonce that was sent; its sequence is the next
     * last_sequence: ka_beat_verify.
     */
    static beat verify(const key &key, const nonce &sent, std::uint64_t last_sequence, const frame &came,
                       std::error_code &ec) noexcept {
        ka_beat native = {0, 0};
        ec = detail::error(ka_beat_verify(key.data(), key.size(), sent.data(), last_sequence, came.data(),
                                          &native) != 0);
        beat made;
        made.client = native.client;
        made.sequence = native.sequence;
        return made;
    }

#if KA_HPP_THROWS
    static nonce make_nonce() {
        std::error_code ec;
        const nonce made = make_nonce(ec);
        detail::check(ec, "ka::beat::make_nonce");
        return made;
    }
    frame sign(const key &key, const nonce &sent) const {
        std::error_code ec;
        const frame made = sign(key, sent, ec);
        detail::check(ec, "ka::beat::sign");
        return made;
    }
    static std::uint64_t client_of(const frame &came) {
        std::error_code ec;
        const std::uint64_t number = client_of(came, ec);
        detail::check(ec, "ka::beat::client_of");
        return number;
    }
    static beat verify(const key &key, const nonce &sent, std::uint64_t last_sequence, const frame &came) {
        std::error_code ec;
        const beat made = verify(key, sent, last_sequence, came, ec);
        detail::check(ec, "ka::beat::verify");
        return made;
    }
#endif
};

#if KA_HPP_THROWS

inline void enable(int fd, const policy &policy) {
    std::error_code ec;
    enable(fd, policy, ec);
    detail::check(ec, "ka::enable");
}

inline void disable(int fd) {
    std::error_code ec;
    disable(fd, ec);
    detail::check(ec, "ka::disable");
}

inline bool is_enabled(int fd) {
    std::error_code ec;
    const bool on = is_enabled(fd, ec);
    detail::check(ec, "ka::is_enabled");
    return on;
}

inline policy query(int fd) {
    std::error_code ec;
    const policy result = query(fd, ec);
    detail::check(ec, "ka::query");
    return result;
}

inline policy defaults() {
    std::error_code ec;
    const policy result = defaults(ec);
    detail::check(ec, "ka::defaults");
    return result;
}

inline status get_status(int fd) {
    std::error_code ec;
    const status result = get_status(fd, ec);
    detail::check(ec, "ka::get_status");
    return result;
}

inline policy parse(const std::string &text) {
    std::error_code ec;
    const policy result = parse(text, ec);
    detail::check(ec, "ka::parse");
    return result;
}

inline std::string format(const policy &policy) {
    std::error_code ec;
    std::string text = format(policy, ec);
    detail::check(ec, "ka::format");
    return text;
}

template <class Rep, class Period> policy plan_detect(std::chrono::duration<Rep, Period> within) {
    std::error_code ec;
    const policy result = plan_detect(within, ec);
    detail::check(ec, "ka::plan_detect");
    return result;
}

template <class Rep, class Period> policy plan_path(std::chrono::duration<Rep, Period> path_idle) {
    std::error_code ec;
    const policy result = plan_path(path_idle, ec);
    detail::check(ec, "ka::plan_path");
    return result;
}

inline policy plan_preset(const char *name) {
    std::error_code ec;
    const policy result = plan_preset(name, ec);
    detail::check(ec, "ka::plan_preset");
    return result;
}

inline detection detect_time(const policy &policy) {
    std::error_code ec;
    const detection result = detect_time(policy, ec);
    detail::check(ec, "ka::detect_time");
    return result;
}

#endif

} // namespace ka

#undef KA_HPP_THROWS

#endif /* KA_HPP */
