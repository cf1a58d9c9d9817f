fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let mut data = vec![1_u8; 100_000];
    let request = job.world().start_send(0, 1, data)?;
    data[0] = 2; //~ E0382
    request.wait()?;
    Ok(())
}
