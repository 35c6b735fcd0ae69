//! Automation: `cargo xtask test|bench|tidy|gen`.

mod bench;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .split_first()
        .map(|(verb, rest)| (verb.as_str(), rest))
    {
        Some(("bench", rest)) => bench::run(rest),
        _ => bail!("usage: cargo xtask test|bench|tidy|gen"),
    }
}
