//! The state of the view, and its reactions to keys, signals, and the processes that work for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use ka_cli::table::Paint;
use ka_cli::top::{Application, SocketProbe, ViewRequest, WatchMessage};
use ka_reach::listing::Listing;
use ka_reach::privilege;
use ka_reach::reason::reason;
use ka_reach::signal::{ViewSignal, ViewSignals};
use ka_reach::wait::poll;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::helper::{ListingProcess, SocketAction, WatchProcess};
use crate::list::{Filter, SocketId, SocketList};
use crate::screen::Screen;
use crate::terminal::{ViewTerminal, is_utf8};

/// The time that the first listing gets before the view appears. If it fails within this time, there is no view.
const FIRST: Duration = Duration::from_secs(2);
/// The longest wait. A change of the terminal's size does not end a wait.
const TICK: Duration = Duration::from_millis(500);
/// The time for which the result of an action is shown.
const RESULT: Duration = Duration::from_secs(10);
/// If the terminal reports input this many times in a row but has none, the terminal is gone.
const EMPTY_READS: u32 = 100;

/// Shows the view until the user quits.
pub(crate) fn show(request: ViewRequest) -> Result<(), String> {
    let failed = |error: io::Error| reason(&error);
    let mut lister = ListingProcess::start(&request).map_err(failed)?;
    lister.request().map_err(failed)?;
    let watcher = Some(WatchProcess::start(&request).map_err(failed)?);
    let signals = ViewSignals::open().map_err(failed)?;
    let mut view = View::new(request);
    let until = Instant::now() + FIRST;
    while view.listed_at.is_none() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        poll(&[lister.as_fd(), signals.as_fd()], left).map_err(failed)?;
        if signals.next() == Some(ViewSignal::End) {
            return Ok(());
        }
        match lister.receive().map_err(failed)? {
            Some(Ok(listing)) => view.take(listing),
            Some(Err(why)) => return Err(why),
            None => {}
        }
    }
    let terminal = ViewTerminal::open().map_err(failed)?;
    let screen = Screen::new(is_utf8());
    let mut session = ViewSession {
        view,
        screen,
        terminal,
        signals,
        lister,
        watcher,
        actions: Vec::new(),
        empty_reads: 0,
        is_stale: true,
    };
    session.run().map_err(failed)
}

/// A dialog in front of the list.
pub(crate) enum Dialog {
    None,
    /// The user types the text of the filter.
    Filter {
        /// The filter before.
        before: Filter,
    },
    Help,
    /// The view asks before it applies a policy.
    Confirm(Application),
}

/// The connections that ended abnormally.
#[derive(Default)]
pub(crate) struct Deaths {
    lines: VecDeque<String>,
    count: u64,
    /// The ends that the list misses.
    note: Option<String>,
}

impl Deaths {
    /// The number of lines that are kept.
    const MOST: usize = 100;

    fn add(&mut self, message: WatchMessage) {
        match message {
            WatchMessage::Died(line) => {
                self.count += 1;
                self.lines.truncate(Self::MOST - 1);
                self.lines.push_front(line);
            }
            WatchMessage::Limits(limits) => self.note = Some(limits),
        }
    }

    pub(crate) fn title(&self) -> String {
        let note = self.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
        format!("DEATHS since the start: {}{note}", self.count)
    }

    /// Returns the last lines, the newest first.
    pub(crate) fn last(&self, count: usize) -> impl Iterator<Item = &str> {
        self.lines.iter().take(count).map(String::as_str)
    }
}

/// The state of the view.
pub(crate) struct View {
    request: ViewRequest,
    pub(crate) list: SocketList,
    pub(crate) dialog: Dialog,
    pub(crate) deaths: Deaths,
    /// True if ka may inspect all processes.
    has_rights: bool,
    is_paused: bool,
    /// The time at which the last listing arrived.
    pub(crate) listed_at: Option<Instant>,
    /// The reasons why the listing failed or is incomplete.
    problems: Vec<String>,
    /// The results of probes, each in one word.
    pub(crate) probes: HashMap<SocketId, String>,
    /// The result of the last action, and the time at which it came.
    result: Option<(String, Instant)>,
}

impl View {
    fn new(request: ViewRequest) -> Self {
        Self {
            request,
            list: SocketList::default(),
            dialog: Dialog::None,
            deaths: Deaths::default(),
            has_rights: privilege::may_look_anywhere(),
            is_paused: false,
            listed_at: None,
            problems: Vec::new(),
            probes: HashMap::new(),
            result: None,
        }
    }

    /// Takes the sockets of a listing.
    fn take(&mut self, listing: Listing) {
        self.list.replace(listing.sockets);
        if !self.probes.is_empty() {
            let open: HashSet<_> = self.list.sockets().iter().map(SocketId::of).collect();
            self.probes.retain(|socket, _| open.contains(socket));
        }
        self.problems = listing.incomplete.iter().map(ToString::to_string).collect();
        self.listed_at = Some(Instant::now());
    }

    /// Returns the first line of the view.
    pub(crate) fn title(&self) -> String {
        let (order, is_reversed) = self.list.order();
        let interval = self.request.interval;
        let reversed = if is_reversed { ", reversed" } else { "" };
        let mut title = format!("ka top  every {interval:?}, by {}{reversed}", order.name());
        let Filter { text, is_risky } = self.list.filter();
        if *is_risky {
            title.push_str(", only risks");
        }
        if !text.trim().is_empty() {
            title = format!("{title}, filter \"{}\"", text.trim());
        }
        if self.list.len() > 0 {
            title = format!("{title}, {} of {}", self.list.place() + 1, self.list.len());
        }
        let age = self.listed_at.map_or(Duration::ZERO, |at| at.elapsed());
        if self.is_paused {
            title.push_str("  PAUSED");
        } else if age > interval.saturating_add(FIRST) {
            title = format!("{title}  (as of {} s ago)", age.as_secs());
        }
        title
    }

    /// Returns the line for messages: the result of an action, or the reason why the list is incomplete.
    pub(crate) fn message(&self) -> (String, Paint) {
        if let Some((text, at)) = &self.result
            && at.elapsed() < RESULT
        {
            return (text.clone(), Paint::Plain);
        }
        let unknown = if self.has_rights { None } else { self.list.lacks_rights() };
        let mut problems = self.problems.iter().cloned().chain(unknown);
        let Some(first) = problems.next() else { return (String::new(), Paint::Plain) };
        let more = problems.count();
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        (ka_reach::escape::visible(format!("{first}{more}").as_bytes()).into_owned(), Paint::Warning)
    }

    /// Takes the text of an action that has ended.
    fn finish(&mut self, probed: Option<SocketId>, text: &str) {
        let text = if text.is_empty() { "interrupted" } else { text };
        let Some(id) = probed else { return self.report(text) };
        let (word, sentence) = text.split_once('\n').unwrap_or((text, text));
        let socket = self.list.sockets().iter().find(|socket| id.is_of(socket));
        let peer = socket.and_then(|socket| socket.entry.peer);
        let peer = peer.map_or_else(|| "the probed connection".to_owned(), |peer| peer.to_string());
        self.report(&format!("{peer}: {sentence}"));
        self.probes.insert(id, word.to_owned());
    }

    fn report(&mut self, text: &str) {
        let text = ka_reach::escape::visible(text.as_bytes()).into_owned();
        self.result = Some((text, Instant::now()));
    }
}

/// The effect of a key outside of the view's state.
#[derive(Debug, PartialEq, Eq)]
enum KeyCommand {
    None,
    Quit,
    Stop,
    Redraw,
    Refresh,
    Apply(Application),
    Probe(SocketId, SocketProbe),
}

impl View {
    /// Reacts to a key. `page` is the number of lines of the table.
    fn press(&mut self, key: KeyEvent, page: usize) -> KeyCommand {
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if has_control => return KeyCommand::Quit,
            KeyCode::Char('z') if has_control => return KeyCommand::Stop,
            KeyCode::Char('l') if has_control => return KeyCommand::Redraw,
            _ => {}
        }
        match std::mem::replace(&mut self.dialog, Dialog::None) {
            Dialog::None => self.press_in_list(key.code, page),
            Dialog::Filter { before } => {
                self.press_in_filter(key.code, has_control, before);
                KeyCommand::None
            }
            // Any key closes the help.
            Dialog::Help => KeyCommand::None,
            Dialog::Confirm(application) if matches!(key.code, KeyCode::Char('y' | 'Y')) => {
                KeyCommand::Apply(application)
            }
            Dialog::Confirm(_) => {
                self.report("nothing was changed");
                KeyCommand::None
            }
        }
    }

    fn press_in_filter(&mut self, code: KeyCode, has_control: bool, before: Filter) {
        let mut filter = self.list.filter().clone();
        match code {
            KeyCode::Enter => return,
            KeyCode::Esc => {
                self.list.set_filter(before);
                return;
            }
            KeyCode::Backspace => drop(filter.text.pop()),
            KeyCode::Char('u') if has_control => filter.text.clear(),
            KeyCode::Char(letter) if !has_control && !ka_reach::escape::controls_terminal(letter) => {
                filter.text.push(letter);
            }
            _ => {}
        }
        self.list.set_filter(filter);
        self.dialog = Dialog::Filter { before };
    }

    fn press_in_list(&mut self, code: KeyCode, page: usize) -> KeyCommand {
        let (order, is_reversed) = self.list.order();
        let page = isize::try_from(page).unwrap_or(isize::MAX);
        match code {
            KeyCode::Char('q') => return KeyCommand::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.dialog = Dialog::Help,
            KeyCode::Char('/') => self.dialog = Dialog::Filter { before: self.list.filter().clone() },
            KeyCode::Char('r') => {
                let filter = self.list.filter().clone();
                self.list.set_filter(Filter { is_risky: !filter.is_risky, ..filter });
            }
            KeyCode::Esc => self.list.set_filter(Filter::default()),
            KeyCode::Char('s') => self.list.sort_by(order.next(), is_reversed),
            KeyCode::Char('S') => self.list.sort_by(order.previous(), is_reversed),
            KeyCode::Char('R') => self.list.sort_by(order, !is_reversed),
            KeyCode::Char(' ') => {
                self.is_paused = !self.is_paused;
                if !self.is_paused {
                    return KeyCommand::Refresh;
                }
            }
            KeyCode::Char('a') => self.ask_to_apply(),
            KeyCode::Char('p') => {
                match self.list.selected().map(|socket| (SocketId::of(socket), SocketProbe::prepare(socket)))
                {
                    Some((id, Ok(probe))) => return KeyCommand::Probe(id, probe),
                    Some((_, Err(why))) => self.report(&why),
                    None => self.report("no socket is selected"),
                }
            }
            KeyCode::Up | KeyCode::Char('k') => self.list.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.list.step(1),
            KeyCode::PageUp | KeyCode::Char('b') => self.list.step(-page),
            KeyCode::PageDown | KeyCode::Char('f') => self.list.step(page),
            KeyCode::Home | KeyCode::Char('g') => self.list.select(0),
            KeyCode::End | KeyCode::Char('G') => self.list.select(usize::MAX),
            _ => {}
        }
        KeyCommand::None
    }

    fn ask_to_apply(&mut self) {
        let Some(socket) = self.list.selected() else {
            return self.report("no socket is selected");
        };
        match Application::prepare(&self.request.policy, socket, self.list.sockets()) {
            Ok(application) => self.dialog = Dialog::Confirm(application),
            Err(why) => self.report(&why),
        }
    }
}

/// The view on its terminal, with the processes that work for it.
struct ViewSession {
    view: View,
    screen: Screen,
    terminal: ViewTerminal,
    signals: ViewSignals,
    lister: ListingProcess,
    /// `None` if the process that watches has ended.
    watcher: Option<WatchProcess>,
    actions: Vec<SocketAction>,
    empty_reads: u32,
    /// True if the picture is not up to date.
    is_stale: bool,
}

impl ViewSession {
    fn run(&mut self) -> io::Result<()> {
        let interval = self.view.request.interval;
        let mut due = Instant::now() + interval;
        let mut tick = Instant::now();
        loop {
            if self.is_stale || tick.elapsed() >= TICK {
                let Self { terminal, screen, view, .. } = self;
                terminal.draw(|frame| screen.draw(frame, view))?;
                (self.is_stale, tick) = (false, Instant::now());
            }
            if !self.lister.is_busy && !self.view.is_paused && Instant::now() >= due {
                due = Instant::now() + interval;
                self.request()?;
            }
            let has_input = self.wait(due.saturating_duration_since(Instant::now()).min(TICK))?;
            while let Some(signal) = self.signals.next() {
                match signal {
                    ViewSignal::End => return Ok(()),
                    ViewSignal::Stop => self.terminal.stop()?,
                    ViewSignal::Continue => self.terminal.resume()?,
                }
                self.is_stale = true;
            }
            self.receive()?;
            for command in self.read_keys(has_input)? {
                match command {
                    KeyCommand::None => {}
                    KeyCommand::Quit => return Ok(()),
                    KeyCommand::Stop => ViewSignals::request_stop(),
                    KeyCommand::Redraw => self.terminal.redraw()?,
                    KeyCommand::Refresh => due = Instant::now(),
                    KeyCommand::Apply(application) => {
                        self.view.report("applying the policy");
                        self.actions.push(SocketAction::start(None, || application.apply())?);
                    }
                    KeyCommand::Probe(id, probe) => {
                        self.view.report("probing the connection");
                        self.view.probes.insert(id.clone(), "...".to_owned());
                        let ask = || {
                            let (word, sentence) = probe.ask();
                            format!("{word}\n{sentence}")
                        };
                        self.actions.push(SocketAction::start(Some(id), ask)?);
                    }
                }
            }
        }
    }

    /// Waits for a key, a signal or an answer. Returns whether the terminal has input.
    fn wait(&self, longest: Duration) -> io::Result<bool> {
        let input = io::stdin();
        let watcher = self.watcher.iter().map(|watcher| watcher.as_fd());
        let actions = self.actions.iter().map(|action| action.as_fd());
        // The next listing is due, but the last one has not arrived yet.
        let longest = if longest.is_zero() { TICK } else { longest };
        let fds: Vec<BorrowedFd<'_>> = [input.as_fd(), self.signals.as_fd(), self.lister.as_fd()]
            .into_iter()
            .chain(watcher)
            .chain(actions)
            .collect();
        Ok(poll(&fds, longest)?.first() == Some(&true))
    }

    /// Requests a listing. If the process that makes listings has ended, starts another one.
    fn request(&mut self) -> io::Result<()> {
        if self.lister.request().is_err() {
            self.lister = ListingProcess::start(&self.view.request)?;
            self.lister.request()?;
        }
        Ok(())
    }

    /// Takes the answers of the processes that work for the view.
    fn receive(&mut self) -> io::Result<()> {
        match self.lister.receive() {
            Ok(None) => {}
            Ok(Some(_)) if self.view.is_paused => {}
            Ok(Some(Ok(listing))) => {
                self.view.take(listing);
                self.is_stale = true;
            }
            Ok(Some(Err(why))) => {
                self.view.list.replace(Vec::new());
                self.view.problems = vec![why];
                self.view.listed_at = Some(Instant::now());
                self.is_stale = true;
            }
            Err(error) => {
                // Start another process when the next listing is due.
                self.lister = ListingProcess::start(&self.view.request)?;
                self.view
                    .report(&format!("the process that lists the sockets has ended: {}", reason(&error)));
                self.is_stale = true;
            }
        }
        match self.watcher.as_mut().map(WatchProcess::receive) {
            Some(Ok(messages)) => {
                self.is_stale |= !messages.is_empty();
                for message in messages {
                    self.view.deaths.add(message);
                }
            }
            Some(Err(_)) => {
                self.watcher = None;
                let note = &mut self.view.deaths.note;
                note.get_or_insert_with(|| "the process that watches has ended".to_owned());
                self.is_stale = true;
            }
            None => {}
        }
        for mut action in std::mem::take(&mut self.actions) {
            match action.receive() {
                None => self.actions.push(action),
                Some(text) => {
                    self.view.finish(action.probed, &text);
                    self.is_stale = true;
                }
            }
        }
        Ok(())
    }

    /// Reads the keys that the user has pressed, and returns their commands.
    fn read_keys(&mut self, has_input: bool) -> io::Result<Vec<KeyCommand>> {
        let mut commands = Vec::new();
        let mut is_empty = true;
        while event::poll(Duration::ZERO)? {
            is_empty = false;
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                commands.push(self.view.press(key, self.screen.lines));
            }
            self.is_stale = true;
        }
        self.empty_reads = if has_input && is_empty { self.empty_reads + 1 } else { 0 };
        if self.empty_reads >= EMPTY_READS {
            return Err(io::Error::other("the terminal is gone"));
        }
        Ok(commands)
    }
}

#[cfg(test)]
mod tests {
    use ka_core::Config;
    use ka_policy::Mode;
    use ka_reach::Error;
    use ka_reach::listing::{ListedSocket, Listing};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::list::tests::connection;

    fn view(sockets: Vec<ListedSocket>) -> View {
        let policy = Ok((Config::new(77, 7, 3).unwrap(), Mode::Force));
        let request = ViewRequest { pids: Vec::new(), port: None, interval: Duration::from_secs(1), policy };
        let mut view = View::new(request);
        view.has_rights = false;
        view.take(Listing { sockets, incomplete: Vec::new() });
        view
    }

    /// Returns the lines of the picture, without blanks at their ends.
    fn picture(screen: &mut Screen, view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, view)).unwrap();
        let text = terminal.backend().to_string();
        text.lines().map(|line| line.trim_matches('"').trim_end().to_owned()).collect()
    }

    fn press(view: &mut View, keys: &str) -> KeyCommand {
        let mut last = KeyCommand::None;
        for letter in keys.chars() {
            let code = match letter {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                letter => KeyCode::Char(letter),
            };
            last = view.press(KeyEvent::new(code, KeyModifiers::NONE), 10);
        }
        last
    }

    #[test]
    fn the_picture_fits_the_terminal() {
        let mut view = view((0..100).map(connection).collect());
        let mut screen = Screen::new(true);
        for (width, height, head, row) in [
            (
                120,
                40,
                "PROCESS     FD  STATE        LOCAL         PEER               KEEP  IDLE  INTVL  CNT  TIMEOUT  RTO_MAX  NEXT  LOST  RISK",
                "server/100   0  established  192.0.2.1:80  198.51.100.7:1000  on     60s    10s    6        -        -     -     -",
            ),
            (
                80,
                24,
                "PROCESS    FD STATE       LOCAL        PEER              KEEP IDLE INTVL CNT",
                "server/100  0 established 192.0.2.1:80 198.51.100.7:1000 on    60s   10s   6",
            ),
            (
                60,
                15,
                "PROCESS     LOCAL         PEER               KEEP  IDLE  CNT",
                "server/100  192.0.2.1:80  198.51.100.7:1000  on     60s    6",
            ),
        ] {
            let lines = picture(&mut screen, &mut view, width, height);
            assert_eq!(lines.len(), usize::from(height));
            assert_eq!(lines[0], "ka top  every 1s, by attention, 1 of 100");
            assert_eq!(lines[1], "100 sockets: 100 on, 0 off");
            assert_eq!((lines[2].as_str(), lines[3].as_str()), (head, row), "{lines:#?}");
            let deaths = usize::from(height) / 4;
            let deaths = deaths.min(8);
            assert_eq!(screen.lines, usize::from(height) - 5 - deaths);
            let head = usize::from(height) - 2 - deaths;
            assert!(lines[head - 1].starts_with("server/100"), "{lines:#?}");
            assert_eq!(lines[head], "DEATHS since the start: 0");
            assert_eq!(lines[usize::from(height) - 2], "");
            assert!(lines[usize::from(height) - 1].starts_with("q quit  ? help  / filter"), "{lines:#?}");
        }
        assert_eq!(picture(&mut screen, &mut view, 59, 24)[0], "ka top needs 60x8, this is 59x24. q quits");
        assert_eq!(
            picture(&mut screen, &mut view, 20, 3),
            ["ka top needs 60x8,", "this is 20x3. q", "quits"]
        );
        picture(&mut screen, &mut view, 1, 1);
    }

    #[test]
    fn the_newest_deaths_are_shown_first() {
        let mut view = view(vec![connection(0)]);
        view.deaths.add(WatchMessage::Limits("only your own".to_owned()));
        for number in 1..=150 {
            view.deaths.add(WatchMessage::Died(format!("12:00:00.000Z a/1 lost 192.0.2.1:{number}: reset")));
        }
        let mut screen = Screen::new(true);
        let lines = picture(&mut screen, &mut view, 80, 24);
        assert_eq!(lines[16], "DEATHS since the start: 150 (only your own)");
        assert_eq!(lines[17], "12:00:00.000Z a/1 lost 192.0.2.1:150: reset");
        assert_eq!(lines[21], "12:00:00.000Z a/1 lost 192.0.2.1:146: reset");
        assert_eq!(view.deaths.last(1000).count(), Deaths::MOST);
        // A small terminal shows more sockets instead.
        assert!(!picture(&mut screen, &mut view, 80, 13).concat().contains("DEATHS"));
    }

    #[test]
    fn columns_keep_their_widths_between_refreshes() {
        let mut long = connection(0);
        long.entry.peer = Some("[2001:db8:1111:2222:3333:4444:5555:6666]:50000".parse().unwrap());
        let mut view = view(vec![long]);
        let mut screen = Screen::new(true);
        let head = picture(&mut screen, &mut view, 200, 20)[2].clone();
        view.take(Listing { sockets: vec![connection(1)], incomplete: Vec::new() });
        assert_eq!(picture(&mut screen, &mut view, 200, 20)[2], head);
        let narrow = picture(&mut Screen::new(true), &mut view, 200, 20)[2].clone();
        assert!(narrow.find("KEEP") < head.find("KEEP"), "{narrow}");
    }

    #[test]
    fn text_is_shown_as_the_terminal_can_show_it() {
        let mut named = connection(0);
        named.owner.as_mut().unwrap().comm = Some("é界\u{1b}[31m".as_bytes().into());
        named.entry.peer = Some("[2001:db8:1111:2222:3333:4444:5555:6666]:50000".parse().unwrap());
        let mut view = view(vec![named]);
        let line = |screen: &mut Screen, view: &mut View, width| picture(screen, view, width, 10)[3].clone();
        // TestBackend shows the second column of a wide letter as a blank.
        let text = line(&mut Screen::new(true), &mut view, 160);
        assert!(text.starts_with("é界") && text.contains("\\u{1b}[31m/100"), "{text}");
        let text = line(&mut Screen::new(true), &mut view, 80);
        assert!(text.contains('…') && text.contains(":50000"), "{text}");
        let text = line(&mut Screen::new(false), &mut view, 80);
        assert!(text.is_ascii() && text.contains('~') && text.contains(":50000"), "{text}");
        let text = line(&mut Screen::new(false), &mut view, 200);
        assert!(text.starts_with("\\u{e9}\\u{754c}\\u{1b}[31m/100"), "{text}");
    }

    #[test]
    fn messages_name_what_is_missing() {
        let mut hidden = connection(0);
        (hidden.owner, hidden.settings) = (None, None);
        let mut view = view(vec![hidden]);
        let unknown =
            "the process or the settings of 1 socket are unknown: run ka as root (needs CAP_SYS_PTRACE)";
        assert_eq!(view.message(), (unknown.to_owned(), Paint::Warning));
        let locked = || Error::Worker("process 7\u{1b}: locked".to_owned());
        view.problems = vec![locked().to_string()];
        assert_eq!(view.message().0, "process 7\\u{1b}: locked (and 1 more)");
        view.has_rights = true;
        assert_eq!(view.message().0, "process 7\\u{1b}: locked");
        view.report("done\u{7}");
        assert_eq!(view.message(), ("done\\u{7}".to_owned(), Paint::Plain));
    }

    #[test]
    fn a_policy_is_applied_only_after_a_yes() {
        let mut view = view(vec![connection(0), connection(1)]);
        assert_eq!(press(&mut view, "ja"), KeyCommand::None);
        let Dialog::Confirm(application) = &view.dialog else { panic!("no question") };
        let expected = [
            "server/100 fd 1",
            "192.0.2.1:80 -> 198.51.100.7:1001",
            "now:     60,10,6",
            "policy:  77,7,3 (mode force)",
            // The port of the peer belongs to this socket only.
            "command: ka attach -p 77,7,3 --mode force --port 1001 100",
        ];
        assert_eq!(application.question, expected);
        let application = application.clone();
        let lines = picture(&mut Screen::new(true), &mut view, 80, 24);
        for text in expected.into_iter().chain(["y: apply    any other key: cancel"]) {
            assert!(lines.iter().any(|line| line.contains(&format!("│ {text}"))), "{text}: {lines:#?}");
        }
        assert_eq!(press(&mut view, "q"), KeyCommand::None);
        assert_eq!(view.message().0, "nothing was changed");
        assert_eq!(press(&mut view, "a\n"), KeyCommand::None);
        assert_eq!(press(&mut view, "ay"), KeyCommand::Apply(application));
        assert!(matches!(view.dialog, Dialog::None));

        view.take(Listing { sockets: Vec::new(), incomplete: Vec::new() });
        press(&mut view, "a");
        assert_eq!(view.message().0, "no socket is selected");
        let mut shared = connection(0);
        shared.others = vec![101];
        let mut second = connection(1);
        second.entry.peer = shared.entry.peer;
        view.take(Listing { sockets: vec![shared, second], incomplete: Vec::new() });
        press(&mut view, "ga");
        let Dialog::Confirm(application) = &view.dialog else { panic!("no question") };
        assert_eq!(application.question[5], "(the command would also set 1 other socket)");
        assert_eq!(application.question[6], "(shared with 1 other process: they get the policy too)");
    }

    #[test]
    fn the_result_of_a_probe_is_shown_in_its_row() {
        let mut listener = connection(9);
        listener.entry.peer = None;
        let mut view = view(vec![connection(0), connection(1), listener]);
        assert_eq!(press(&mut view, "gp"), KeyCommand::None);
        assert_eq!(view.message().0, "this socket is not a connection, so ka cannot probe it");
        let KeyCommand::Probe(id, _) = press(&mut view, "jjp") else { panic!("no probe") };
        view.probes.insert(id.clone(), "...".to_owned());
        view.finish(Some(id), "0.4ms\nanswered after 0.4 ms");
        assert_eq!(view.message().0, "198.51.100.7:1001: answered after 0.4 ms");
        let lines = picture(&mut Screen::new(true), &mut view, 200, 20);
        let column = lines[2].find("PROBE").unwrap();
        let results: Vec<_> =
            lines[3..6].iter().map(|line| line.get(column..column + 5).unwrap().trim()).collect();
        assert_eq!(results, ["-", "-", "0.4ms"], "{lines:#?}");
        // The result is forgotten with its connection.
        view.take(Listing { sockets: vec![connection(0)], incomplete: Vec::new() });
        assert!(view.probes.is_empty());
        assert!(!picture(&mut Screen::new(true), &mut view, 200, 20)[2].contains("PROBE"));
    }

    #[test]
    fn the_filter_takes_effect_while_it_is_typed() {
        let mut view = view(vec![connection(0), connection(1)]);
        press(&mut view, "/q1001");
        assert_eq!(view.list.len(), 0);
        let mut screen = Screen::new(true);
        let lines = picture(&mut screen, &mut view, 80, 24);
        assert_eq!(lines[3], "no socket matches the filter");
        assert_eq!(lines[23], "filter: q1001_   Enter: keep, Esc: cancel");
        view.press(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL), 10);
        press(&mut view, "1001");
        assert_eq!(view.list.len(), 1);
        view.press(KeyEvent::new(KeyCode::Backspace, KeyModifiers::NONE), 10);
        assert_eq!(view.list.filter().text, "100");
        press(&mut view, "\n/x\u{1b}");
        assert_eq!(view.list.filter().text, "100");
        assert_eq!(view.title(), "ka top  every 1s, by attention, filter \"100\", 1 of 2");
        press(&mut view, "\u{1b}rR");
        assert_eq!(view.title(), "ka top  every 1s, by attention, reversed, only risks");
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut view, "/");
        assert_eq!(view.press(key, 10), KeyCommand::Quit);
    }

    #[test]
    fn the_help_names_each_key() {
        let mut view = view(Vec::new());
        press(&mut view, "?");
        let lines = picture(&mut Screen::new(false), &mut view, 80, 24).join("\n");
        for key in [
            "q ", "? ", "/ ", "r ", "s ", "p ", "a ", "Space ", "R ", "Esc ", "arrows ", "Ctrl-L ", "Ctrl-Z ",
        ] {
            assert!(lines.contains(&format!("| {key}")), "{key}: {lines}");
        }
        // Any key closes it, and has no other effect.
        assert_eq!(press(&mut view, "q"), KeyCommand::None);
        assert!(matches!(view.dialog, Dialog::None));
        assert_eq!(press(&mut view, "q"), KeyCommand::Quit);
    }
}
