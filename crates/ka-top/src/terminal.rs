//! The terminal: raw mode and the alternate screen. When the view ends for any reason, also by a panic, the terminal is
//! as it was before.

use std::env;
use std::io::{self, Stdout, Write as _};
use std::panic;

use ka_reach::signal::ViewSignals;
use ratatui::Frame;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// The terminal, while the view uses it.
pub(crate) struct ViewTerminal {
    terminal: ratatui::Terminal<CrosstermBackend<Stdout>>,
}

impl ViewTerminal {
    /// Takes the terminal. From now on, a panic gives it back before it prints its message.
    pub(crate) fn open() -> io::Result<Self> {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            default(panic);
        }));
        take().inspect_err(|_| give_back())?;
        Ok(Self { terminal: ratatui::Terminal::new(CrosstermBackend::new(io::stdout()))? })
    }

    /// Draws a picture.
    pub(crate) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(picture).map(drop)
    }

    /// Makes the next picture complete. Otherwise only changes are sent to the terminal.
    pub(crate) fn redraw(&mut self) -> io::Result<()> {
        self.terminal.clear()
    }

    /// Gives the terminal back, and stops this process until it is continued.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        give_back();
        ViewSignals::stop();
        self.resume()
    }

    /// Takes the terminal again after a stop.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        // crossterm changes the mode only if it is not raw already, according to its own records.
        disable_raw_mode()?;
        take()?;
        self.redraw()
    }
}

impl Drop for ViewTerminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, Hide)
}

/// Gives the terminal back. Errors are ignored: the terminal may be gone.
fn give_back() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = io::stdout().flush();
    let _ = disable_raw_mode();
}

/// Returns whether the terminal shows UTF-8, according to the locale. locale(7)
pub(crate) fn is_utf8() -> bool {
    let names = ["LC_ALL", "LC_CTYPE", "LANG"];
    let locale = names.into_iter().filter_map(env::var_os).find(|value| !value.is_empty());
    let name = locale.unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.contains("utf-8") || name.contains("utf8")
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::ViewTerminal;

    /// Runs this test again on a terminal, where it panics while it shows a view.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        const INSIDE: &str = "KA_TEST_PANIC";
        if env::var_os(INSIDE).is_some() {
            let mut terminal = ViewTerminal::open().unwrap();
            terminal.draw(|_| panic!("on purpose")).unwrap();
            return;
        }
        let own = env::current_exe().unwrap();
        let test = "terminal::tests::a_panic_gives_the_terminal_back";
        let inside = format!("stty -g; {} --exact {test} --nocapture; stty -g", own.display());
        let mut script = Command::new("script");
        script.args(["-qec", &inside, "/dev/null"]).env(INSIDE, "1").stdin(std::process::Stdio::null());
        let output = String::from_utf8(script.output().unwrap().stdout).unwrap();
        let lines: Vec<_> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let modes: Vec<_> = lines.iter().filter(|line| line.matches(':').count() > 20).collect();
        assert_eq!(modes.len(), 2, "{output}");
        assert_eq!(modes[0], modes[1], "{output}");
        let places = ["\u{1b}[?1049h", "\u{1b}[?1049l", "\u{1b}[?25h", "on purpose"];
        let places =
            places.map(|text| output.find(text).unwrap_or_else(|| panic!("no {text:?} in {output:?}")));
        assert!(places.is_sorted(), "{output:?}");
    }
}
