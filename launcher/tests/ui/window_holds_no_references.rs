fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let _ = job.world().window::<&u64>(10); //~ E0277
    Ok(())
}
