/** A process that owns GPU memory: see there. */
import "../../gpu/owner.ts";
