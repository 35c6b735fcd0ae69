//! Automation: `cargo xtask test|bench|tidy|gen`.

fn main() -> anyhow::Result<()> {
    Ok(())
}
