//! Servers that lie: the driver ends soon, with an error that says where or with less than it asked for, and never panics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host::boundary::{
    Checkpoints, ClusterMembership, Definition, Inventory, Mobility, Power, StopMode,
    UserCheckpoints,
};
use host::checkpoint::{CheckpointRequest, UserCheckpointKind, UserCheckpointRequest};
use host::cluster::{MigrationKind, MigrationRequest};
use host::coverage::plan_coverage;
use host::custody::{Custody, MemoryLog};
use host::eligibility::{Evidence, judge};
use host::hyperv::HyperV;
use host::ids::JobId;
use lab::estate::Random;
use wsman::client::ClientOptions;
use wsman::transport::{Answer, Post, Transport};

use super::place::{Load, Place, Plan, calm, node};
use super::round::owner;

/// What becomes of an answer.
type Lie = fn(&mut Random, String) -> String;

/// Tells lies from a certain answer on.
struct Lying {
    inner: Arc<dyn Transport>,
    lie: Lie,
    dice: Mutex<Random>,
    /// Answers that are left as they are.
    honest: AtomicU64,
    /// One lie in so many answers.
    every: u64,
}

impl Transport for Lying {
    fn post(&self, post: &Post<'_>) -> wsman::Result<Answer> {
        let mut answer = self.inner.post(post)?;
        let is_honest = self
            .honest
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(1))
            .is_ok();
        let mut dice = self.dice.lock().expect("the stream");
        if is_honest || dice.below(self.every) != 0 {
            return Ok(answer);
        }
        let text = String::from_utf8(answer.body).expect("the lab writes UTF-8");
        answer.body = (self.lie)(&mut dice, text).into_bytes();
        if answer.body.len() > post.answer_max_bytes {
            // As a transport must.
            return Err(wsman::Error::new(
                wsman::ErrorKind::Limit,
                "the answer is longer than was allowed",
            ));
        }
        Ok(answer)
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

fn cut(dice: &mut Random, mut text: String) -> String {
    let mut end = usize::try_from(dice.below(text.len() as u64 + 1)).expect("small");
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn deep(_: &mut Random, text: String) -> String {
    let within = "<x>".repeat(100_000);
    text.replace("<s:Body>", &format!("<s:Body>{within}"))
}

fn huge_texts(dice: &mut Random, text: String) -> String {
    let size = usize::try_from(dice.below(4 << 20)).expect("small");
    values(dice, text, |_, _| None).replacen("</p:", &format!("{}</p:", "x".repeat(size)), 1)
}

fn many_elements(_: &mut Random, text: String) -> String {
    text.replacen(
        "<p:Name>",
        &format!("{}<p:Name>", "<p:Y/>".repeat(200_000)),
        1,
    )
}

fn many_items(_: &mut Random, text: String) -> String {
    let (Some(from), Some(to)) = (
        text.find("Items>"),
        text.rfind("</w:Items>").or(text.rfind("</n:Items>")),
    ) else {
        return text;
    };
    let items = text[from + 6..to].to_owned();
    if items.is_empty() {
        return text;
    }
    let times = (1 << 20) / items.len();
    format!(
        "{}{}{}",
        &text[..from + 6],
        items.repeat(times.max(1)),
        &text[to..]
    )
}

fn entities(_: &mut Random, text: String) -> String {
    let bomb = "<!DOCTYPE r [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>";
    format!("{bomb}{}", text.replacen("<p:Name>", "<p:Name>&b;", 1))
}

/// Every value of a property through a function, which may leave it.
fn values(
    dice: &mut Random,
    text: String,
    change: impl Fn(&mut Random, &str) -> Option<String>,
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("</p:") {
        let (before, after) = rest.split_at(at);
        let start = before.rfind('>').map_or(0, |it| it + 1);
        let value = &before[start..];
        out.push_str(&before[..start]);
        match change(dice, value) {
            Some(other) => out.push_str(&other),
            None => out.push_str(value),
        }
        out.push_str("</p:");
        rest = &after[4..];
    }
    out.push_str(rest);
    out
}

fn wrong_types(dice: &mut Random, text: String) -> String {
    const JUNK: &[&str] = &[
        "",
        "-1",
        "18446744073709551616",
        "many",
        "TRUE",
        "NaN",
        "4294967295",
        "../../..\\..",
        "Microsoft:",
        "\\\\?\\",
        "&lt;INSTANCE CLASSNAME=\"x\"&gt;",
        "00000000-0000-0000-0000-000000000000",
        "20240101000000.000000+000",
        "C:\\ClusterStorage\\Volume1\\app01\\app01.vhdx",
    ];
    values(dice, text, |dice, _| {
        let junk = usize::try_from(dice.below(JUNK.len() as u64)).expect("small");
        (dice.below(6) == 0).then(|| JUNK[junk].to_owned())
    })
}

/// Values change places among properties of one name: machines become each other's parents, disks each other's images, jobs
/// never end or never were.
fn confusion(dice: &mut Random, text: String) -> String {
    let mut known: HashMap<String, Vec<String>> = HashMap::new();
    let name_behind = |rest: &str| -> String {
        let letters = rest.chars();
        letters.take_while(char::is_ascii_alphanumeric).collect()
    };
    let mut rest = text.as_str();
    while let Some(at) = rest.find("</p:") {
        let (before, after) = rest.split_at(at);
        let start = before.rfind('>').map_or(0, |it| it + 1);
        let name = name_behind(&after[4..]);
        known
            .entry(name)
            .or_default()
            .push(before[start..].to_owned());
        rest = &after[4..];
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("</p:") {
        let (before, after) = rest.split_at(at);
        let start = before.rfind('>').map_or(0, |it| it + 1);
        let others = &known[&name_behind(&after[4..])];
        let other = usize::try_from(dice.below(others.len() as u64)).expect("small");
        out.push_str(&before[..start]);
        out.push_str(if dice.below(3) == 0 {
            &others[other]
        } else {
            &before[start..]
        });
        out.push_str("</p:");
        rest = &after[4..];
    }
    out.push_str(rest);
    out
}

/// Everything points to itself.
fn cycles(_: &mut Random, text: String) -> String {
    let Some(at) = text.find("<p:InstanceID>") else {
        return text;
    };
    let id = text[at + 14..]
        .split('<')
        .next()
        .unwrap_or_default()
        .replace('\\', "\\\\");
    let own = format!("Msvm_ResourceAllocationSettingData.InstanceID=&quot;{id}&quot;");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("<p:Parent>") {
        let (before, after) = rest.split_at(at + 10);
        out.push_str(before);
        out.push_str(&own);
        rest = after.find("</p:Parent>").map_or("", |end| &after[end..]);
    }
    out.push_str(rest);
    out
}

fn endless(_: &mut Random, text: String) -> String {
    text.replace("<w:EndOfSequence/>", "")
        .replace("<n:EndOfSequence/>", "")
        .replace(
            "<n:EnumerationContext/>",
            "<n:EnumerationContext>uuid:00000000-0000-0000-0000-000000000001</n:EnumerationContext>",
        )
}

fn hung(_: &mut Random, text: String) -> String {
    ["7", "8", "9", "10", "32768"]
        .iter()
        .fold(text, |text, state| {
            text.replace(
                &format!("<p:JobState>{state}</p:JobState>"),
                "<p:JobState>4</p:JobState>",
            )
        })
}

fn faults(dice: &mut Random, text: String) -> String {
    const CODES: &[&str] = &[
        "w:TimedOut",
        "w:AccessDenied",
        "a:DestinationUnreachable",
        "w:InternalError",
        "w:QuotaLimit",
        "n:InvalidEnumerationContext",
        "w:EncodingLimit",
        "odd:Nothing",
    ];
    let (Some(from), Some(to)) = (text.find("<s:Body>"), text.rfind("</s:Body>")) else {
        return text;
    };
    let code = CODES[usize::try_from(dice.below(CODES.len() as u64)).expect("small")];
    let number = dice.next_u64();
    format!(
        "{}<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>{code}</s:Value></s:Subcode></s:Code><s:Reason>\
         <s:Text>{}</s:Text></s:Reason><s:Detail><f:WSManFault xmlns:f=\"http://schemas.microsoft.com/wbem/wsman/1/wsmanfault\" \
         Code=\"{number}\"/></s:Detail></s:Fault>{}",
        &text[..from + 8],
        "sorry ".repeat(10_000),
        &text[to..]
    )
}

fn nothing(_: &mut Random, _text: String) -> String {
    String::new()
}

fn other_answers(dice: &mut Random, text: String) -> String {
    match dice.below(3) {
        0 => "<html><body>Welcome</body></html>".to_owned(),
        1 => text.replace("EnumerateResponse", "PullResponse"),
        _ => text
            .replace("_OUTPUT", "_INPUT")
            .replace("ReturnValue", "Return"),
    }
}

const LIES: &[(&str, Lie)] = &[
    ("cut", cut),
    ("deep", deep),
    ("huge texts", huge_texts),
    ("many elements", many_elements),
    ("many items", many_items),
    ("entities", entities),
    ("wrong types", wrong_types),
    ("confusion", confusion),
    ("cycles", cycles),
    ("endless", endless),
    ("hung", hung),
    ("faults", faults),
    ("nothing", nothing),
    ("other answers", other_answers),
];

/// Everything that a driver is asked; each call ends in whatever it ends in.
fn ask_everything(place: &Place, driver: &HyperV, seed: u64) {
    let vm = place.id();
    let calm = calm();
    if let Ok(report) = driver.inventory(&calm) {
        for machine in &report.machines {
            let judged = judge(&Evidence::of(machine));
            assert!(!judged.rules.is_empty());
            let covered = plan_coverage(machine, &[]);
            assert!(covered.lines.len() >= machine.disks.len());
        }
    }
    told(driver.clusters(&calm));
    told(driver.machine(vm, &calm));
    told(driver.moves(&[(vm, node("HV02"))], &calm));
    told(driver.planned(&node("HV01"), &calm));
    let log = Arc::new(MemoryLog::default());
    let job = JobId::from_bytes([u8::try_from(seed % 251).expect("small"); 16]);
    let custody = Custody::new(log, owner(), job);
    if let Ok(made) = driver.create(&CheckpointRequest::new(vm), &custody, &calm) {
        told(driver.open(&made.reference, &calm));
        if let Ok(settled) = driver.settle(&made, &custody, &calm) {
            if let Some(point) = settled.point {
                told(driver.drop_tracking(&point, &custody, &calm));
            }
        } else {
            told(driver.release(&made.reference, &custody, &calm));
        }
    }
    let request = UserCheckpointRequest {
        vm,
        name: "before".to_owned(),
        kind: UserCheckpointKind::AsSet,
    };
    told(driver.create_checkpoint(&request, &calm));
    let request = MigrationRequest {
        vm,
        what: MigrationKind::Machine { to: node("HV02") },
    };
    told(driver.migrate(&request, &calm));
    told(driver.watch_merge(vm, &calm));
    told(driver.stop(vm, StopMode::Save, &calm));
    told(driver.start(vm, &calm));
}

/// An error says something.
fn told<T>(ended: host::Result<T>) {
    if let Err(error) = ended {
        let text = error.to_string();
        assert!(
            !text.is_empty() && text.len() < 100_000,
            "{} bytes",
            text.len()
        );
    }
}

/// Most memory that this process had by now.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("facts of this process");
    let line = status.lines().find(|it| it.starts_with("VmHWM:"));
    let kib = line.and_then(|it| it.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.expect("a peak") * 1024
}

fn lied_to(part: usize) {
    let before = peak_bytes();
    for (name, lie) in LIES.iter().skip(part).step_by(4) {
        let place = Place::new(Plan {
            load: Load::Idle,
            ..Plan::new()
        });
        for seed in 0..4_u64 {
            println!("{name}, seed {seed}");
            let between = |_: &str, inner| -> Arc<dyn Transport> {
                Arc::new(Lying {
                    inner,
                    lie: *lie,
                    dice: Mutex::new(Random::seeded(seed)),
                    honest: AtomicU64::new([0, 20, 60, 120][usize::try_from(seed).expect("small")]),
                    every: 1 + seed % 3,
                })
            };
            let driver = place.driver_through(&between, &ClientOptions::default());
            let began = Instant::now();
            ask_everything(&place, &driver, seed);
            let took = began.elapsed();
            assert!(
                took < Duration::from_secs(60),
                "{name}, seed {seed}: {took:?}"
            );
            // The estate goes on, whatever the driver was made to do.
            place.pass(600);
        }
    }
    let grown = peak_bytes().saturating_sub(before);
    assert!(grown < 1 << 30, "{} MiB more", grown >> 20);
}

#[test]
fn lies_end_in_errors_in_little_time_and_memory_first_part() {
    lied_to(0);
}

#[test]
fn lies_end_in_errors_in_little_time_and_memory_second_part() {
    lied_to(1);
}

#[test]
fn lies_end_in_errors_in_little_time_and_memory_third_part() {
    lied_to(2);
}

#[test]
fn lies_end_in_errors_in_little_time_and_memory_fourth_part() {
    lied_to(3);
}
