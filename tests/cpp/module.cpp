/* A module that includes ka.hpp in its global module fragment. */
module;
#include <ka.hpp>
export module keepalive;

inline constexpr ka::policy chosen =
    ka::policy{}.idle(std::chrono::seconds{60}).intvl(std::chrono::seconds{10}).cnt(5).user_timeout(ka::none);

export int turn_on(int fd) {
    std::error_code ec;
    ka::enable(fd, chosen, ec);
    return ec.value();
}

export inline bool is_as_chosen(int fd) {
    std::error_code ec;
    return ka::query(fd, ec).rto_max(std::nullopt) == chosen && ka::is_enabled(fd, ec);
}

export bool is_policy(const char *text) { return ka::explain(text).empty(); }

export int make_reaper() {
    std::error_code ec;
    const ka::reaper reaper{std::chrono::seconds{0}, ec};
    return ec.value();
}

#if defined(__cpp_exceptions)
export int turn_on_or_throw(int fd) {
    try {
        ka::enable(fd, chosen);
    } catch (const std::system_error &error) {
        return error.code().value();
    }
    return 0;
}
#else
export int turn_on_or_throw(int fd) { return turn_on(fd); }
#endif
