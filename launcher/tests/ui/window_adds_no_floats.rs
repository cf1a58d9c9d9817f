fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let window = job.world().window::<f64>(10)?;
    window.fetch_add(0, 0, 1.0)?; //~ E0599
    window.close()
}
