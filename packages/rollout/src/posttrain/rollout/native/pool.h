// Threads that wait for work and live as long as the process.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
  public:
    // Calls work(unit) for 0 <= unit < units on up to `threads` threads, this one among them.
    void run(int units, int threads, const std::function<void(int)>& work) {
        std::lock_guard<std::mutex> alone(callers_);
        int helpers = std::min(threads, units) - 1;
        next_ = 0;
        units_ = units;
        work_ = &work;
        if (helpers > 0) {
            std::lock_guard<std::mutex> hold(mutex_);
            while (static_cast<int>(workers_.size()) < helpers) {
                workers_.emplace_back([this] { wait_for_work(); });
                workers_.back().detach();
            }
            wanted_ = helpers;
            busy_ = helpers;
            wake_.notify_all();
        }
        drain();
        if (helpers > 0) {
            std::unique_lock<std::mutex> hold(mutex_);
            done_.wait(hold, [this] { return busy_ == 0; });
        }
    }

  private:
    void drain() {
        for (int unit = next_++; unit < units_; unit = next_++) (*work_)(unit);
    }
    void wait_for_work() {
        std::unique_lock<std::mutex> hold(mutex_);
        for (;;) {
            wake_.wait(hold, [this] { return wanted_ > 0; });
            wanted_--;
            hold.unlock();
            drain();
            hold.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }
    std::mutex callers_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<int> next_{0};
    int units_ = 0, wanted_ = 0, busy_ = 0;
};

static Pool& pool() {
    static Pool* p = new Pool;  // never destroyed: its threads may outlive static destructors
    return *p;
}
