/* One program of two files: with exceptions (main), and compiled with -fno-exceptions and -DWITHOUT. */
#include <ka.hpp>

using namespace std::chrono_literals;

bool bad_value_makes_the_policy_invalid();

#if defined(WITHOUT)

bool bad_value_makes_the_policy_invalid() {
    const ka::policy policy = ka::policy{}.idle(60s).intvl(1500ms).cnt(5);
    return !policy.is_valid() && ka::policy{}.idle(60s).is_valid();
}

#else

int main() {
    bool has_thrown = false;
    try {
        static_cast<void>(ka::policy{}.idle(60s).intvl(1500ms).cnt(5));
    } catch (const std::system_error &error) {
        has_thrown = error.code() == std::errc::invalid_argument;
    }
    return has_thrown && bad_value_makes_the_policy_invalid() ? 0 : 1;
}

#endif
