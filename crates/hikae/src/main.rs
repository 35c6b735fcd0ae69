//! The one binary. Everything it does lives in the crates below it.

fn main() -> std::process::ExitCode {
    cli::main()
}
