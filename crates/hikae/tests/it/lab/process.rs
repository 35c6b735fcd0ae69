//! A lab as a process of its own, and how its hosts are written down.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::super::site::{Outcome, Site, text};

/// `hikae lab up`, running. Killed when it is dropped.
pub struct Lab {
    child: Child,
    _stdout: ChildStdout,
    stderr: PathBuf,
    pub ready: Value,
}

impl Lab {
    /// Starts one, sixty times as fast as the clock.
    #[track_caller]
    pub fn up(site: &Site, more: &[&str]) -> Self {
        let mut words = vec!["lab", "up", "--speed", "60"];
        words.extend(more);
        let stderr = site.path("lab.stderr");
        let mut child = site
            .command(words)
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("the binary starts");
        let mut stdout = child.stdout.take().expect("its standard output");
        let ready = serde_json::Deserializer::from_reader(&mut stdout)
            .into_iter::<Value>()
            .next()
            .and_then(Result::ok);
        let said = || fs::read_to_string(&stderr).unwrap_or_default();
        let ready = ready.unwrap_or_else(|| panic!("it said nothing but: {}", said()));
        assert_eq!(ready["simulated"], true, "{ready} {}", said());
        Self {
            child,
            _stdout: stdout,
            stderr,
            ready,
        }
    }

    /// Where a node listens.
    pub fn address(&self, node: &str) -> &str {
        self.node(node)["address"].as_str().expect("an address")
    }

    /// The file with the password of its account.
    pub fn password_file(&self) -> &Path {
        Path::new(self.ready["password_file"].as_str().expect("a file"))
    }

    /// Writes a node down under its own name.
    pub fn add(&self, site: &Site, node: &str, password_file: &Path, more: &[&str]) -> Outcome {
        let user = self.ready["user"].as_str().expect("a user");
        let mut words = vec!["host", "add", node, "--address", self.address(node)];
        words.extend(["--user", user, "--password-file", text(password_file)]);
        let files: Vec<String> = self
            .files(node)
            .into_iter()
            .flat_map(|(windows, local)| ["--files-at".to_owned(), format!("{windows}={local}")])
            .collect();
        words.extend(files.iter().map(String::as_str));
        words.extend(more);
        site.run(words)
    }

    fn node(&self, name: &str) -> &Value {
        let nodes = self.ready["nodes"].as_array().expect("nodes");
        let found = nodes.iter().find(|it| it["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {}", self.ready))
    }

    /// Folders of a node, as it calls them, and where they lie here.
    pub fn files(&self, node: &str) -> Vec<(&str, &str)> {
        let files = self.node(node)["files"].as_array().expect("files");
        files
            .iter()
            .filter_map(|it| Some((it["windows"].as_str()?, it["local"].as_str()?)))
            .collect()
    }

    /// Where a path of a node lies here.
    #[track_caller]
    pub fn local(&self, node: &str, path: &str) -> PathBuf {
        let best = self
            .files(node)
            .into_iter()
            .filter(|(windows, _)| path.starts_with(windows))
            .max_by_key(|(windows, _)| windows.len());
        let (windows, local) = best.unwrap_or_else(|| panic!("nothing for {path}"));
        let rest = path[windows.len()..].trim_start_matches('\\');
        Path::new(local).join(rest.replace('\\', "/"))
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until it has ended, which somebody else asked for.
    #[track_caller]
    pub fn ended(mut self) {
        let status = self.child.wait().expect("its end");
        let said = fs::read_to_string(&self.stderr).expect("its standard error");
        assert!(
            !said.contains("panicked") && !said.contains("warning"),
            "{said}"
        );
        assert_eq!(status.code(), Some(0), "{said}");
    }

    /// Ends it as an operator does.
    #[track_caller]
    pub fn down(self) {
        rustix::process::kill_process(self.pid(), Signal::TERM).expect("it runs");
        self.ended();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // After `down` there is nobody left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
