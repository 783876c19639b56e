/*
 * ka.hpp - TCP keepalive that works, for C++17 and newer: ka.h with std::chrono, exceptions and RAII. Link with -lka.
 *
 *     using namespace std::chrono_literals;
 *
 *     ka::enable(fd, ka::policy{}.idle(60s).intvl(10s).cnt(5));
 *
 * fd is a descriptor: socket.native_handle() of Asio, the result of uv_fileno() of libuv, or the result of socket(2).
 * ka.h documents what each function does, which sockets it accepts, its errors, and the state after a failure. This
 * file documents only the differences in C++.
 *
 * Errors. Each function that can fail has two overloads. One throws std::system_error with the errno of ka.h, in
 * std::generic_category(). The other has a std::error_code& as its last parameter, does not throw, and clears the code
 * on success. (Functions that return a std::string or a std::vector may also throw std::bad_alloc.) With
 * -fno-exceptions only the overloads with a std::error_code& exist.
 *
 * If a call that returns a ka::policy fails, the policy is invalid. Every function rejects an invalid policy with
 * EINVAL, and no setter makes it valid. So if a program ignores the error code, it does not turn keepalive on with the
 * defaults of the system, where the first probe may come after two hours.
 *
 * Durations may have any std::chrono type. The kernel takes whole seconds for idle and intvl, and whole milliseconds
 * for the user timeout and rto_max. Any other duration is an error (EINVAL), as is a duration that is out of range.
 * Nothing is rounded or truncated, with one exception: ka::enable_lenient rounds up.
 *
 * Threads and signals: as in ka.h. A function with a std::error_code& that returns neither a std::string nor a
 * std::vector is async-signal-safe if its function of ka.h is.
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

// One program may contain files with exceptions and files that are compiled with -fno-exceptions. Setters have
// different bodies in the two kinds of files, so they need different names for the linker.
#if !KA_HPP_THROWS
inline namespace without_exceptions {
#endif

namespace detail {

inline std::error_code error(int number) noexcept { return {number, std::generic_category()}; }

/** Returns the error of a call of ka.h: the errno if the call has failed, and no error otherwise. */
inline std::error_code error(bool failed) noexcept { return failed ? error(errno) : std::error_code{}; }

#if KA_HPP_THROWS
inline void check(const std::error_code &ec, const char *function) {
    if (ec)
        throw std::system_error(ec, function);
}
#endif

/** Returns a duration as a number of Units. Returns nothing if it is not a whole number from min to max. */
template <class Unit, class Rep, class Period>
constexpr std::optional<std::int64_t> whole(const std::chrono::duration<Rep, Period> &duration, std::int64_t min,
                                            std::int64_t max) noexcept {
    using ratio = std::ratio_divide<Period, typename Unit::period>;
    const Rep count = duration.count();
    if constexpr (std::chrono::treat_as_floating_point_v<Rep>) {
        const auto units = static_cast<long double>(count) * static_cast<long double>(ratio::num) /
                           static_cast<long double>(ratio::den);
        // The negation makes a NaN out of range.
        if (!(units >= static_cast<long double>(min) && units <= static_cast<long double>(max)))
            return std::nullopt;
        const auto result = static_cast<std::int64_t>(units);
        // This is result != units without a warning about comparing floating point numbers.
        if (static_cast<long double>(result) < units || static_cast<long double>(result) > units)
            return std::nullopt;
        return result;
    } else {
        static_assert(std::is_integral_v<Rep>, "the Rep of a duration must be an integer or a floating point type");
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

/** A duration for ka_enable_lenient. */
struct lenient_time {
    int seconds;
    bool is_rounded;
};

/** Rounds a duration up to whole seconds. The result is at most max + 1, which ka_enable_lenient clamps and reports. */
template <class Rep, class Period>
constexpr lenient_time lenient(const std::chrono::duration<Rep, Period> &duration, int max) noexcept {
    if (const auto seconds = whole<std::chrono::seconds>(duration, 1, max))
        return {static_cast<int>(*seconds), false};
    // The negation makes a NaN keep the value.
    if (!(duration.count() > Rep{0}))
        return {0, false};
    const auto seconds = static_cast<long double>(duration.count()) * static_cast<long double>(Period::num) /
                         static_cast<long double>(Period::den);
    if (seconds > static_cast<long double>(max))
        return {max + 1, false};
    return {static_cast<int>(seconds) + 1, true};
}

/** Returns the value of a field of struct ka_config. Returns nothing if the field is KA_KEEP or 0. */
template <class Value> constexpr std::optional<Value> named(std::int32_t field) noexcept {
    return field == KA_KEEP || field == 0 ? std::nullopt : std::optional<Value>{Value{field}};
}

/** Returns the text that a function of ka.h writes into a buffer as snprintf(3) does. */
template <class Function> std::string text(Function function, std::error_code &ec) {
    std::string text;
    const int length = function(static_cast<char *>(nullptr), std::size_t{0});
    ec = error(length < 0);
    if (length > 0) {
        text.resize(static_cast<std::size_t>(length) + 1);
        function(text.data(), text.size());
        text.pop_back();
    }
    return text;
}

} // namespace detail

/** The type of ka::automatic. */
struct automatic_t {
    explicit constexpr automatic_t() = default;
};
/** For ka::policy::user_timeout and ka::policy::rto_max: computed when the policy is applied. KA_AUTO */
inline constexpr automatic_t automatic{};

/** The type of ka::none. */
struct none_t {
    explicit constexpr none_t() = default;
};
/** For ka::policy::user_timeout: removes the user timeout. KA_NONE */
inline constexpr none_t none{};

/**
 * A keepalive policy: struct ka_config. A new policy turns keepalive on and leaves every other value as it is.
 *
 * Setters. ka::policy{}.idle(60s).intvl(10s) is a policy, and may be a constant expression. On a variable the setters
 * change the variable and return a reference to it. A setter with a std::error_code& returns nothing, so such calls do
 * not chain: a later call would overwrite the error of an earlier one.
 *
 * A bad value. In a constant expression it does not compile. A setter without a std::error_code& throws, and leaves the
 * policy unchanged. A setter with a std::error_code& reports EINVAL, and makes the policy invalid. With -fno-exceptions
 * every setter makes the policy invalid.
 *
 * An invalid policy stays invalid until another policy is assigned to it. Every function rejects it with EINVAL, and
 * setters with a std::error_code& report EINVAL for it, even if the value is good.
 */
class policy {
    template <class Switch>
    using if_switch = std::enable_if_t<std::is_same_v<Switch, bool> || std::is_same_v<Switch, std::nullopt_t> ||
                                       std::is_same_v<Switch, std::optional<bool>>>;

public:
    constexpr policy() noexcept { config_.keepalive = KA_ON; }

    /** Makes a policy from a struct ka_config. If its size is not sizeof(ka_config), the policy is invalid. */
    explicit constexpr policy(const ka_config &config) noexcept : config_(config) {
        if (config.size != sizeof(ka_config)) {
            invalidate();
            return;
        }
        // In struct ka_config, 0 means the same as KA_KEEP. Store only KA_KEEP, so that equal policies compare equal.
        for (std::int32_t *field :
             {&config_.keepalive, &config_.idle, &config_.intvl, &config_.cnt, &config_.user_timeout, &config_.rto_max})
            *field = *field == 0 ? KA_KEEP : *field;
    }

    /** Returns the config for functions of ka.h. They reject the config of an invalid policy with EINVAL. */
    [[nodiscard]] constexpr const ka_config &native() const noexcept { return config_; }

    /** Returns false for the policy of a failed call, and after a bad value. Values of a ka_config are not checked. */
    [[nodiscard]] constexpr bool is_valid() const noexcept { return config_.size != 0; }

    /** Sets how long the connection is idle before the first probe: whole seconds, 1 s to KA_IDLE_MAX s. */
    template <class Rep, class Period> constexpr policy &idle(std::chrono::duration<Rep, Period> time) & {
        set(config_.idle, seconds(time, KA_IDLE_MAX), "ka::policy::idle: must be whole seconds from 1 to 32767");
        return *this;
    }
    template <class Rep, class Period>
    [[nodiscard]] constexpr policy idle(std::chrono::duration<Rep, Period> time) && {
        return idle(time);
    }
    template <class Rep, class Period>
    void idle(std::chrono::duration<Rep, Period> time, std::error_code &ec) & noexcept {
        set(config_.idle, seconds(time, KA_IDLE_MAX), ec);
    }

    /** Sets the time from an unanswered probe to the next: whole seconds, 1 s to KA_INTVL_MAX s. */
    template <class Rep, class Period> constexpr policy &intvl(std::chrono::duration<Rep, Period> time) & {
        set(config_.intvl, seconds(time, KA_INTVL_MAX), "ka::policy::intvl: must be whole seconds from 1 to 32767");
        return *this;
    }
    template <class Rep, class Period>
    [[nodiscard]] constexpr policy intvl(std::chrono::duration<Rep, Period> time) && {
        return intvl(time);
    }
    template <class Rep, class Period>
    void intvl(std::chrono::duration<Rep, Period> time, std::error_code &ec) & noexcept {
        set(config_.intvl, seconds(time, KA_INTVL_MAX), ec);
    }

    /** Sets how many unanswered probes end the connection: 1 to KA_CNT_MAX. */
    constexpr policy &cnt(long long probes) & {
        set(config_.cnt, count(probes), "ka::policy::cnt: must be 1 to 127 probes");
        return *this;
    }
    [[nodiscard]] constexpr policy cnt(long long probes) && { return cnt(probes); }
    void cnt(long long probes, std::error_code &ec) & noexcept { set(config_.cnt, count(probes), ec); }

    /**
     * Sets how long sent data or keepalive probes may stay unacknowledged: whole milliseconds, 1 ms to 2147483647 ms.
     * 0 ms and ka::none remove the user timeout. ka::automatic is idle + intvl * cnt. std::nullopt leaves it unchanged.
     */
    template <class Rep, class Period> constexpr policy &user_timeout(std::chrono::duration<Rep, Period> time) & {
        set(config_.user_timeout, timeout(time),
            "ka::policy::user_timeout: must be whole milliseconds from 0 to 2147483647");
        return *this;
    }
    template <class Rep, class Period>
    [[nodiscard]] constexpr policy user_timeout(std::chrono::duration<Rep, Period> time) && {
        return user_timeout(time);
    }
    template <class Rep, class Period>
    void user_timeout(std::chrono::duration<Rep, Period> time, std::error_code &ec) & noexcept {
        set(config_.user_timeout, timeout(time), ec);
    }
    constexpr policy &user_timeout(automatic_t) & noexcept { return set(config_.user_timeout, KA_AUTO); }
    [[nodiscard]] constexpr policy user_timeout(automatic_t tag) && noexcept { return user_timeout(tag); }
    constexpr policy &user_timeout(none_t) & noexcept { return set(config_.user_timeout, KA_NONE); }
    [[nodiscard]] constexpr policy user_timeout(none_t tag) && noexcept { return user_timeout(tag); }
    constexpr policy &user_timeout(std::nullopt_t) & noexcept { return set(config_.user_timeout, KA_KEEP); }
    [[nodiscard]] constexpr policy user_timeout(std::nullopt_t tag) && noexcept { return user_timeout(tag); }

    /**
     * Sets the longest time between two retransmissions: whole milliseconds, KA_RTO_MAX_MIN ms to KA_RTO_MAX_MAX ms. It
     * limits how long unacknowledged data hides a dead peer: ka::data_time. ka::automatic limits that time to
     * idle + intvl * cnt, if rto_max can achieve it. std::nullopt leaves rto_max unchanged. ka_set_rto_max
     */
    template <class Rep, class Period> constexpr policy &rto_max(std::chrono::duration<Rep, Period> time) & {
        set(config_.rto_max, longest(time), "ka::policy::rto_max: must be whole milliseconds from 1000 to 120000");
        return *this;
    }
    template <class Rep, class Period>
    [[nodiscard]] constexpr policy rto_max(std::chrono::duration<Rep, Period> time) && {
        return rto_max(time);
    }
    template <class Rep, class Period>
    void rto_max(std::chrono::duration<Rep, Period> time, std::error_code &ec) & noexcept {
        set(config_.rto_max, longest(time), ec);
    }
    constexpr policy &rto_max(automatic_t) & noexcept { return set(config_.rto_max, KA_AUTO); }
    [[nodiscard]] constexpr policy rto_max(automatic_t tag) && noexcept { return rto_max(tag); }
    constexpr policy &rto_max(std::nullopt_t) & noexcept { return set(config_.rto_max, KA_KEEP); }
    [[nodiscard]] constexpr policy rto_max(std::nullopt_t tag) && noexcept { return rto_max(tag); }

    /**
     * Sets whether the policy turns keepalive on (true) or off (false), or leaves it as it is (std::nullopt). The type
     * must be bool, std::nullopt_t or std::optional<bool>. A number is rejected, because KA_OFF (2) would become true.
     */
    template <class Switch, class = if_switch<Switch>> constexpr policy &keepalive(Switch on) & noexcept {
        const std::optional<bool> wanted{on};
        return set(config_.keepalive, !wanted ? KA_KEEP : *wanted ? KA_ON : KA_OFF);
    }
    template <class Switch, class = if_switch<Switch>>
    [[nodiscard]] constexpr policy keepalive(Switch on) && noexcept {
        return keepalive(on);
    }

    /** These return the value that the policy sets, or std::nullopt if the policy leaves the value as it is. */
    [[nodiscard]] constexpr std::optional<bool> keepalive() const noexcept {
        return config_.keepalive == KA_ON    ? std::optional<bool>{true}
               : config_.keepalive == KA_OFF ? std::optional<bool>{false}
                                             : std::nullopt;
    }
    [[nodiscard]] constexpr std::optional<std::chrono::seconds> idle() const noexcept {
        return detail::named<std::chrono::seconds>(config_.idle);
    }
    [[nodiscard]] constexpr std::optional<std::chrono::seconds> intvl() const noexcept {
        return detail::named<std::chrono::seconds>(config_.intvl);
    }
    [[nodiscard]] constexpr std::optional<int> cnt() const noexcept { return detail::named<int>(config_.cnt); }
    /** 0 ms: the policy removes the user timeout. std::nullopt also stands for ka::automatic. */
    [[nodiscard]] constexpr std::optional<std::chrono::milliseconds> user_timeout() const noexcept {
        return config_.user_timeout == KA_NONE ? std::optional<std::chrono::milliseconds>{std::chrono::milliseconds{0}}
               : is_automatic()                ? std::nullopt
                                               : detail::named<std::chrono::milliseconds>(config_.user_timeout);
    }
    /** Returns whether the user timeout is ka::automatic. */
    [[nodiscard]] constexpr bool is_automatic() const noexcept { return config_.user_timeout == KA_AUTO; }
    /** std::nullopt also stands for ka::automatic. */
    [[nodiscard]] constexpr std::optional<std::chrono::milliseconds> rto_max() const noexcept {
        return is_rto_max_automatic() ? std::nullopt : detail::named<std::chrono::milliseconds>(config_.rto_max);
    }
    /** Returns whether rto_max is ka::automatic. */
    [[nodiscard]] constexpr bool is_rto_max_automatic() const noexcept { return config_.rto_max == KA_AUTO; }

    [[nodiscard]] friend constexpr bool operator==(const policy &a, const policy &b) noexcept {
        return a.config_.size == b.config_.size && a.config_.keepalive == b.config_.keepalive &&
               a.config_.idle == b.config_.idle && a.config_.intvl == b.config_.intvl &&
               a.config_.cnt == b.config_.cnt && a.config_.user_timeout == b.config_.user_timeout &&
               a.config_.rto_max == b.config_.rto_max;
    }
    [[nodiscard]] friend constexpr bool operator!=(const policy &a, const policy &b) noexcept { return !(a == b); }

private:
    template <class Rep, class Period>
    static constexpr std::optional<std::int64_t> seconds(std::chrono::duration<Rep, Period> time, int max) noexcept {
        return detail::whole<std::chrono::seconds>(time, 1, max);
    }
    template <class Rep, class Period>
    static constexpr std::optional<std::int64_t> timeout(std::chrono::duration<Rep, Period> time) noexcept {
        const auto ms = detail::whole<std::chrono::milliseconds>(time, 0, std::numeric_limits<std::int32_t>::max());
        return ms == std::int64_t{0} ? std::int64_t{KA_NONE} : ms;
    }
    template <class Rep, class Period>
    static constexpr std::optional<std::int64_t> longest(std::chrono::duration<Rep, Period> time) noexcept {
        return detail::whole<std::chrono::milliseconds>(time, KA_RTO_MAX_MIN, KA_RTO_MAX_MAX);
    }
    static constexpr std::optional<std::int64_t> count(long long probes) noexcept {
        return probes >= 1 && probes <= KA_CNT_MAX ? std::optional<std::int64_t>{probes} : std::nullopt;
    }

    constexpr policy &set(std::int32_t &field, std::int32_t value) noexcept {
        if (is_valid())
            field = value;
        return *this;
    }
    constexpr void set(std::int32_t &field, std::optional<std::int64_t> value, const char *message) {
        if (value)
            set(field, static_cast<std::int32_t>(*value));
        else
            reject(message);
    }
    void set(std::int32_t &field, std::optional<std::int64_t> value, std::error_code &ec) noexcept {
        if (value)
            set(field, static_cast<std::int32_t>(*value));
        else
            invalidate();
        ec = is_valid() ? std::error_code{} : detail::error(EINVAL);
    }

    /** Not constexpr: a constant expression with a bad value must not compile. */
#if KA_HPP_THROWS
    [[noreturn]] static void reject(const char *message) {
        throw std::system_error(EINVAL, std::generic_category(), message);
    }
#else
    void reject(const char *) noexcept { invalidate(); }
#endif

    /** Every function of ka.h rejects a config whose size is 0 with EINVAL. */
    constexpr void invalidate() noexcept { config_ = ka_config{}; }

    ka_config config_ = KA_CONFIG_INIT;
};

namespace detail {

/** Returns the policy that a function of ka.h writes into a config. If the function fails, the policy is invalid. */
template <class Function> policy filled(Function function, std::error_code &ec) noexcept {
    ka_config config = KA_CONFIG_INIT;
    ec = error(function(&config) != 0);
    return policy{ec ? ka_config{} : config};
}

/** Returns the invalid policy of a call with a bad argument. */
inline policy rejected(std::error_code &ec) noexcept {
    ec = error(EINVAL);
    return policy{ka_config{}};
}

} // namespace detail

/** The values that ka::enable_lenient has not set as requested. Converts to true if there is such a value. */
class missed {
public:
    explicit constexpr missed(int mask) noexcept : mask_(mask) {}

    [[nodiscard]] constexpr bool idle() const noexcept { return (mask_ & KA_MISSED_IDLE) != 0; }
    [[nodiscard]] constexpr bool intvl() const noexcept { return (mask_ & KA_MISSED_INTVL) != 0; }
    [[nodiscard]] constexpr bool cnt() const noexcept { return (mask_ & KA_MISSED_CNT) != 0; }
    /** The socket is not TCP, and was left unchanged. */
    [[nodiscard]] constexpr bool not_tcp() const noexcept { return (mask_ & KA_MISSED_TCP) != 0; }

    explicit constexpr operator bool() const noexcept { return mask_ != 0; }

    /** Returns the sum of the KA_MISSED_ bits. */
    [[nodiscard]] constexpr int native() const noexcept { return mask_; }

private:
    int mask_;
};

/** The time that a policy needs to detect a dead peer. ka_detect_time, ka_data_time */
struct detection {
    std::chrono::milliseconds typical;
    std::chrono::milliseconds worst;
};

/** The state of a connection: struct ka_status. */
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

/** Applies a policy. It turns keepalive on or off, or leaves it as it is, and sets the given values. ka_apply */
inline void apply(int fd, const policy &policy, std::error_code &ec) noexcept {
    ec = detail::error(ka_apply(fd, &policy.native()) != 0);
}

/** Turns keepalive on with a policy. Fails with EINVAL if the policy does not turn keepalive on. ka_apply */
inline void enable(int fd, const policy &policy, std::error_code &ec) noexcept {
    if (policy.keepalive() == true)
        apply(fd, policy, ec);
    else
        ec = detail::error(EINVAL);
}

/**
 * Turns keepalive on even if a timer cannot be set. Returns the values that are not as requested. ka_enable_lenient
 *
 * A time of 0 or less, and a cnt below 1, leaves the value as it is. A time that is not whole seconds is rounded up and
 * reported. A value above the maximum is clamped and reported. If the call fails, all values are reported.
 */
template <class Rep1, class Period1, class Rep2, class Period2>
missed enable_lenient(int fd, std::chrono::duration<Rep1, Period1> idle, std::chrono::duration<Rep2, Period2> intvl,
                      long long cnt, std::error_code &ec) noexcept {
    const auto idle_s = detail::lenient(idle, KA_IDLE_MAX);
    const auto intvl_s = detail::lenient(intvl, KA_INTVL_MAX);
    const auto probes = static_cast<int>(std::clamp(cnt, 0LL, KA_CNT_MAX + 1LL));
    const int mask = ka_enable_lenient(fd, idle_s.seconds, intvl_s.seconds, probes);
    ec = detail::error(mask < 0);
    if (mask < 0)
        return missed{KA_MISSED_IDLE | KA_MISSED_INTVL | KA_MISSED_CNT | KA_MISSED_TCP};
    if ((mask & KA_MISSED_TCP) != 0)
        return missed{mask};
    return missed{mask | (idle_s.is_rounded ? KA_MISSED_IDLE : 0) | (intvl_s.is_rounded ? KA_MISSED_INTVL : 0)};
}

/** Turns keepalive off. ka_disable */
inline void disable(int fd, std::error_code &ec) noexcept { ec = detail::error(ka_disable(fd) != 0); }

/** Returns whether keepalive is on, and false if the call fails. ka_is_enabled */
[[nodiscard]] inline bool is_enabled(int fd, std::error_code &ec) noexcept {
    const int result = ka_is_enabled(fd);
    ec = detail::error(result < 0);
    return result > 0;
}

/** Returns the settings that are in force. ka_query */
[[nodiscard]] inline policy query(int fd, std::error_code &ec) noexcept {
    return detail::filled([&](ka_config *config) { return ka_query(fd, config); }, ec);
}

/** Returns the settings of a new socket of this network namespace. ka_defaults */
[[nodiscard]] inline policy defaults(std::error_code &ec) noexcept { return detail::filled(ka_defaults, ec); }

/** Returns the state of a connection. ka_get_status */
[[nodiscard]] inline status get_status(int fd, std::error_code &ec) noexcept {
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

/**
 * Checks whether the peer is alive, and waits for its answer up to `timeout`, in whole milliseconds. Returns false if
 * no answer arrives in time, or if the call fails. ka_probe
 */
template <class Rep, class Period>
[[nodiscard]] bool probe(int fd, std::chrono::duration<Rep, Period> timeout, std::error_code &ec) noexcept {
    const auto ms = detail::whole<std::chrono::milliseconds>(timeout, 0, std::numeric_limits<int>::max());
    const int result = ms ? ka_probe(fd, static_cast<int>(*ms)) : -1;
    ec = ms ? detail::error(result < 0) : detail::error(EINVAL);
    return result > 0;
}

/** Reads a policy from its text: "60,10,5" or "idle=1m, intvl=10s, cnt=5". ka_parse */
[[nodiscard]] inline policy parse(const std::string &text, std::error_code &ec) noexcept {
    // C would ignore everything after a NUL.
    if (text.find('\0') != std::string::npos)
        return detail::rejected(ec);
    return detail::filled([&](ka_config *config) { return ka_parse(text.c_str(), config); }, ec);
}

/** Returns why ka::parse rejects a text, or an empty string if ka::parse accepts the text. ka_explain */
[[nodiscard]] inline std::string explain(const std::string &text) {
    if (text.find('\0') != std::string::npos)
        return "a policy must not contain a NUL character";
    std::error_code ec;
    return detail::text([&](char *out, std::size_t size) { return ka_explain(text.c_str(), out, size); }, ec);
}

/** Writes a policy as a text that ka::parse reads back. ka_format */
[[nodiscard]] inline std::string format(const policy &policy, std::error_code &ec) {
    return detail::text([&](char *out, std::size_t size) { return ka_format(&policy.native(), out, size); }, ec);
}

/** Returns a policy that detects a dead peer within this time, in whole milliseconds. ka_plan_detect */
template <class Rep, class Period>
[[nodiscard]] policy plan_detect(std::chrono::duration<Rep, Period> within, std::error_code &ec) noexcept {
    const auto ms = detail::whole<std::chrono::milliseconds>(within, 0, std::numeric_limits<std::uint32_t>::max());
    if (!ms)
        return detail::rejected(ec);
    return detail::filled(
        [&](ka_config *config) { return ka_plan_detect(static_cast<std::uint32_t>(*ms), config); }, ec);
}

/** Returns a policy for a path that drops connections idle for this time, in whole seconds. ka_plan_path */
template <class Rep, class Period>
[[nodiscard]] policy plan_path(std::chrono::duration<Rep, Period> path_idle, std::error_code &ec) noexcept {
    const auto s = detail::whole<std::chrono::seconds>(path_idle, 0, std::numeric_limits<std::uint32_t>::max());
    if (!s)
        return detail::rejected(ec);
    return detail::filled([&](ka_config *config) { return ka_plan_path(static_cast<std::uint32_t>(*s), config); }, ec);
}

/** Returns the policy for a middlebox whose idle timeout is published, for example "aws-nlb". ka_plan_preset */
[[nodiscard]] inline policy plan_preset(const char *name, std::error_code &ec) noexcept {
    return detail::filled([&](ka_config *config) { return ka_plan_preset(name, config); }, ec);
}

namespace detail {

/** Returns the times that a function of ka.h calculates for a policy. */
inline detection times(decltype(ka_detect_time) *function, const policy &policy, std::error_code &ec) noexcept {
    std::uint64_t typical = 0;
    std::uint64_t worst = 0;
    ec = error(function(&policy.native(), &typical, &worst) != 0);
    return {std::chrono::milliseconds{typical}, std::chrono::milliseconds{worst}};
}

} // namespace detail

/** Returns the time that a policy needs to detect a dead peer. ka_detect_time */
[[nodiscard]] inline detection detect_time(const policy &policy, std::error_code &ec) noexcept {
    return detail::times(ka_detect_time, policy, ec);
}

/** Returns the time that a policy needs to detect a dead peer while sent data is unacknowledged. ka_data_time */
[[nodiscard]] inline detection data_time(const policy &policy, std::error_code &ec) noexcept {
    return detail::times(ka_data_time, policy, ec);
}

/** Returns the version of the library that runs. ka_version */
[[nodiscard]] inline const char *version() noexcept { return ka_version(); }

/**
 * Finds the connections that have been inactive for a time: struct ka_reaper. One thread at a time may use it.
 *
 * It can be moved, but not copied. A reaper that was moved from has no connection, and its touch and expired fail with
 * EINVAL.
 */
class reaper {
public:
    using clock = std::chrono::steady_clock;

    /** The timeout is whole milliseconds, 1 ms to 4294967295 ms. If this fails, touch and expired fail with EINVAL. */
    template <class Rep, class Period>
    reaper(std::chrono::duration<Rep, Period> timeout, std::error_code &ec) noexcept {
        const auto ms =
            detail::whole<std::chrono::milliseconds>(timeout, 1, std::numeric_limits<std::uint32_t>::max());
        if (ms)
            reaper_.reset(ka_reaper_new(static_cast<std::uint32_t>(*ms)));
        ec = ms ? detail::error(reaper_ == nullptr) : detail::error(EINVAL);
    }

    /** Records that a connection is active now. Adds the connection if it is new. ka_reaper_touch */
    void touch(int fd, clock::time_point now, std::error_code &ec) noexcept {
        ec = detail::error(ka_reaper_touch(reaper_.get(), fd, ms(now)) != 0);
    }

    /** Removes a connection. Call it before close(2). Returns false if the connection is not there. ka_reaper_forget */
    bool forget(int fd) noexcept { return ka_reaper_forget(reaper_.get(), fd) == 0; }

    /** Removes at most n connections that are due, the longest inactive first. Returns how many. ka_reaper_expired */
    [[nodiscard]] std::size_t expired(int *fds, std::size_t n, clock::time_point now, std::error_code &ec) noexcept {
        const int count = ka_reaper_expired(reaper_.get(), ms(now), fds, n);
        ec = detail::error(count < 0);
        return count < 0 ? 0 : static_cast<std::size_t>(count);
    }

    /** Returns the time until a connection is due. Returns std::nullopt if there is no connection. ka_reaper_next */
    [[nodiscard]] std::optional<std::chrono::milliseconds> next(clock::time_point now = clock::now()) const noexcept {
        const int time = ka_reaper_next(reaper_.get(), ms(now));
        return time < 0 ? std::nullopt : std::optional<std::chrono::milliseconds>{std::chrono::milliseconds{time}};
    }

    /** Returns how many connections the reaper has. ka_reaper_len */
    [[nodiscard]] std::size_t size() const noexcept { return ka_reaper_len(reaper_.get()); }
    [[nodiscard]] bool empty() const noexcept { return size() == 0; }

    [[nodiscard]] ka_reaper *native_handle() noexcept { return reaper_.get(); }

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
    [[nodiscard]] std::size_t expired(int *fds, std::size_t n, clock::time_point now = clock::now()) {
        std::error_code ec;
        const std::size_t count = expired(fds, n, now, ec);
        detail::check(ec, "ka::reaper::expired");
        return count;
    }
    /**
     * Removes all connections that are due. If there is not enough memory for all, the others stay for the next call.
     * If there is no memory at all, throws std::bad_alloc, and the reaper is unchanged.
     */
    [[nodiscard]] std::vector<int> expired(clock::time_point now = clock::now()) {
        std::vector<int> fds;
        // Throws if this reaper was moved from. The loop would take such a reaper for one without connections.
        static_cast<void>(expired(nullptr, 0, now));
        // Allocate before connections are removed, because a failure must not lose any. Usually few are due, so the
        // vector starts small.
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

/** A reference to the bytes of a key: a std::string, or a std::vector or std::array of bytes. It copies nothing. */
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

/** A heartbeat that only a client with the key can make: struct ka_beat. */
struct beat {
    using nonce = std::array<std::uint8_t, KA_BEAT_NONCE_SIZE>;
    using frame = std::array<std::uint8_t, KA_BEAT_SIZE>;

    std::uint64_t client = 0;
    std::uint64_t sequence = 0;

    /** Makes the nonce of a connection. ka_beat_nonce */
    [[nodiscard]] static nonce make_nonce(std::error_code &ec) noexcept {
        nonce made{};
        ec = detail::error(ka_beat_nonce(made.data()) != 0);
        return made;
    }

    /** Returns the bytes to send. ka_beat_sign */
    [[nodiscard]] frame sign(const key &key, const nonce &sent, std::error_code &ec) const noexcept {
        frame made{};
        const ka_beat native = {client, sequence};
        ec = detail::error(ka_beat_sign(key.data(), key.size(), sent.data(), &native, made.data()) != 0);
        return made;
    }

    /** Returns the client that a frame names, to find its key. Only verify() proves the client. ka_beat_client */
    [[nodiscard]] static std::uint64_t client_of(const frame &received, std::error_code &ec) noexcept {
        std::uint64_t number = 0;
        ec = detail::error(ka_beat_client(received.data(), &number) != 0);
        return number;
    }

    /**
     * Checks that a received frame was made with this key and nonce, and that its sequence is greater than
     * last_sequence. Pass the sequence of the result as last_sequence next time. ka_beat_verify
     */
    [[nodiscard]] static beat verify(const key &key, const nonce &sent, std::uint64_t last_sequence,
                                     const frame &received, std::error_code &ec) noexcept {
        ka_beat native = {0, 0};
        ec = detail::error(ka_beat_verify(key.data(), key.size(), sent.data(), last_sequence, received.data(),
                                          &native) != 0);
        beat made;
        made.client = native.client;
        made.sequence = native.sequence;
        return made;
    }

#if KA_HPP_THROWS
    [[nodiscard]] static nonce make_nonce() {
        std::error_code ec;
        const nonce made = make_nonce(ec);
        detail::check(ec, "ka::beat::make_nonce");
        return made;
    }
    [[nodiscard]] frame sign(const key &key, const nonce &sent) const {
        std::error_code ec;
        const frame made = sign(key, sent, ec);
        detail::check(ec, "ka::beat::sign");
        return made;
    }
    [[nodiscard]] static std::uint64_t client_of(const frame &received) {
        std::error_code ec;
        const std::uint64_t number = client_of(received, ec);
        detail::check(ec, "ka::beat::client_of");
        return number;
    }
    [[nodiscard]] static beat verify(const key &key, const nonce &sent, std::uint64_t last_sequence,
                                     const frame &received) {
        std::error_code ec;
        const beat made = verify(key, sent, last_sequence, received, ec);
        detail::check(ec, "ka::beat::verify");
        return made;
    }
#endif
};

#if KA_HPP_THROWS

inline void apply(int fd, const policy &policy) {
    std::error_code ec;
    apply(fd, policy, ec);
    detail::check(ec, "ka::apply");
}

inline void enable(int fd, const policy &policy) {
    if (policy.is_valid() && policy.keepalive() != true)
        throw std::system_error(EINVAL, std::generic_category(), "ka::enable: the policy does not turn keepalive on");
    std::error_code ec;
    enable(fd, policy, ec);
    detail::check(ec, "ka::enable");
}

template <class Rep1, class Period1, class Rep2, class Period2>
missed enable_lenient(int fd, std::chrono::duration<Rep1, Period1> idle, std::chrono::duration<Rep2, Period2> intvl,
                      long long cnt) {
    std::error_code ec;
    const missed result = enable_lenient(fd, idle, intvl, cnt, ec);
    detail::check(ec, "ka::enable_lenient");
    return result;
}

inline void disable(int fd) {
    std::error_code ec;
    disable(fd, ec);
    detail::check(ec, "ka::disable");
}

[[nodiscard]] inline bool is_enabled(int fd) {
    std::error_code ec;
    const bool on = is_enabled(fd, ec);
    detail::check(ec, "ka::is_enabled");
    return on;
}

[[nodiscard]] inline policy query(int fd) {
    std::error_code ec;
    const policy result = query(fd, ec);
    detail::check(ec, "ka::query");
    return result;
}

[[nodiscard]] inline policy defaults() {
    std::error_code ec;
    const policy result = defaults(ec);
    detail::check(ec, "ka::defaults");
    return result;
}

[[nodiscard]] inline status get_status(int fd) {
    std::error_code ec;
    const status result = get_status(fd, ec);
    detail::check(ec, "ka::get_status");
    return result;
}

template <class Rep, class Period> [[nodiscard]] bool probe(int fd, std::chrono::duration<Rep, Period> timeout) {
    std::error_code ec;
    const bool is_alive = probe(fd, timeout, ec);
    detail::check(ec, "ka::probe");
    return is_alive;
}

[[nodiscard]] inline policy parse(const std::string &text) {
    std::error_code ec;
    const policy result = parse(text, ec);
    if (ec)
        throw std::system_error(ec, "ka::parse: " + explain(text));
    return result;
}

[[nodiscard]] inline std::string format(const policy &policy) {
    std::error_code ec;
    std::string text = format(policy, ec);
    detail::check(ec, "ka::format");
    return text;
}

template <class Rep, class Period> [[nodiscard]] policy plan_detect(std::chrono::duration<Rep, Period> within) {
    std::error_code ec;
    const policy result = plan_detect(within, ec);
    detail::check(ec, "ka::plan_detect");
    return result;
}

template <class Rep, class Period> [[nodiscard]] policy plan_path(std::chrono::duration<Rep, Period> path_idle) {
    std::error_code ec;
    const policy result = plan_path(path_idle, ec);
    detail::check(ec, "ka::plan_path");
    return result;
}

[[nodiscard]] inline policy plan_preset(const char *name) {
    std::error_code ec;
    const policy result = plan_preset(name, ec);
    detail::check(ec, "ka::plan_preset");
    return result;
}

[[nodiscard]] inline detection detect_time(const policy &policy) {
    std::error_code ec;
    const detection result = detect_time(policy, ec);
    detail::check(ec, "ka::detect_time");
    return result;
}

[[nodiscard]] inline detection data_time(const policy &policy) {
    std::error_code ec;
    const detection result = data_time(policy, ec);
    detail::check(ec, "ka::data_time");
    return result;
}

#else

} // namespace without_exceptions

#endif

} // namespace ka

#undef KA_HPP_THROWS

#endif /* KA_HPP */
