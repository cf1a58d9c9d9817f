fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let window = job.world().window::<u64>(10)?;
    let slice: &[u64] = &window; //~ E0308
    println!("{}", slice[0] + window[0]); //~ E0608
    window.close()
}
