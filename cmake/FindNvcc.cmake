# Finds a CUDA compiler before enable_language(CUDA): CMAKE_CUDA_COMPILER or CUDACXX, else nvcc on
# PATH, else the PyPI toolkit (cuda-toolkit[nvcc,cccl]) of the Python that runs this build.
# The PyPI wheels keep their libraries in lib/ where nvcc looks in lib64/, and ship no libcudart.so
# link, so the library folder is named by hand.

function(baracuda_find_nvcc)
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
    return()
  endif()
  # PATH alone, as the build backend looks when it decides whether to ask for the PyPI toolkit.
  find_program(BARACUDA_NVCC nvcc PATHS ENV PATH NO_DEFAULT_PATH)
  if(BARACUDA_NVCC)
    set(CMAKE_CUDA_COMPILER "${BARACUDA_NVCC}" PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import importlib.util as u; s = u.find_spec('nvidia'); print(next((p for p in (s.submodule_search_locations if s else ())), ''))"
    OUTPUT_VARIABLE nvidia OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(root "${nvidia}/cu13")
  if(NOT EXISTS "${root}/bin/nvcc")
    message(FATAL_ERROR
      "No CUDA compiler: set CUDACXX, put nvcc (>= 12.4) on PATH, install "
      "cuda-toolkit[nvcc,cccl]==13.0.*, or build the host backend alone with -DBARACUDA_CUDA=OFF.")
  endif()
  set(CMAKE_CUDA_COMPILER "${root}/bin/nvcc" PARENT_SCOPE)
  set(CUDAToolkit_ROOT "${root}" PARENT_SCOPE)
  set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${root}/lib" PARENT_SCOPE)
  file(GLOB cudart "${root}/lib/libcudart.so.*")
  if(cudart)
    list(GET cudart 0 cudart)
    set(CUDA_CUDART "${cudart}" CACHE FILEPATH "cudart of the PyPI toolkit" FORCE)
  endif()
endfunction()
