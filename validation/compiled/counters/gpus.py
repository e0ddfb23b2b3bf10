"""What a GPU can do at most, and the least time in which it can do what was counted.

Every rate is one that the hardware does not exceed, so that what is made of it is a bound from below. Sources:

* DRAM bytes a second: NVIDIA's datasheets of the A100 80GB SXM, H100 SXM, H200 SXM and DGX B200 (64 TB/s of 8 GPUs).
* SMs: NVIDIA's whitepapers of the A100 and H100, the datasheet of the H200 (a GH100), and for the B200 148, which
  Chips and Cheese ("Nvidia's B200: Keeping the CUDA Juggernaut Rolling", 2025) read from the device. Clocks: the
  highest that the device reports: 1410 MHz (A100), 1980 MHz (H100 and H200); a B200's is said to be similar.
* An SM issues four warp instructions a cycle, one a scheduler; its L1, which is its shared memory too, gives 128 bytes
  a cycle, and 64 bytes a cycle come to it from L2 (CUDA C++ Programming Guide, "Compute Capabilities"; Jia et al.,
  "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018, tables 3.1 and 3.2). All of an A100's SMs
  together get 5120 bytes a cycle from L2 (A100 whitepaper).
* Registers 65,536 and 2048 threads, 32 CTAs, shared memory 164 KB (8.0) or 228 KB (9.0, 10.0) of an SM, of which each
  CTA takes 1 KB more than it asks for: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

import dataclasses

CLOCK = 1e6


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: of the product. target: the name of `validation.compiled.ptx.target.TARGETS` that it runs.
        dram: bytes a second. sms: how many SMs. clock: cycles a second.
        l2: bytes a cycle that all SMs together get from L2.
        shared: bytes of shared memory of an SM.
    """

    name: str
    target: str
    dram: float
    sms: int
    clock: float
    l2: int
    shared: int

    def resident(self, threads: int, registers: int, shared_bytes: int) -> int:
        """How many CTAs an SM holds at once; at least 1.

        Args:
            threads: of a CTA. registers: of a thread. shared_bytes: of a CTA.
        """
        # Registers are allotted to a warp in units of 256.
        of_warp = -(-registers * 32 // 256) * 256
        by_registers = 65_536 // (of_warp * (threads // 32)) if registers else 32
        return max(1, min(32, 2048 // threads, by_registers, self.shared // (shared_bytes + 1024)))


GPUS = (
    Gpu("A100", "sm_80", 2.039e12, 108, 1410 * CLOCK, 5120, 164 * 1024),
    Gpu("H100", "sm_90", 3.35e12, 132, 1980 * CLOCK, 64 * 132, 228 * 1024),
    Gpu("H200", "sm_90", 4.8e12, 132, 1980 * CLOCK, 64 * 132, 228 * 1024),
    Gpu("B200", "sm_100", 8.0e12, 148, 1980 * CLOCK, 64 * 148, 228 * 1024),
)
