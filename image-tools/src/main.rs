//! `image-tools`: see the library of the same name.

fn main() -> std::process::ExitCode {
    image_tools::cli::main()
}
